"""The pages of the documentation: their programs run, and their links lead somewhere."""

import contextlib
import re
from pathlib import Path

import pytest

from examples.experiments.experiment import NAMES
from examples.site import pages

ROOT = Path(__file__).parents[2]
SITE = ROOT / "examples" / "site"
HOME = "https://github.com/gradtx/gradtx"
PAGES = sorted(SITE.glob("*.md"))
# Others are made when the site is built.
FILES = [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), *PAGES, *SITE.glob("guides/*.md")]
FENCED = re.compile(r"^(`{3,}).*?^\1$", re.DOTALL | re.MULTILINE)


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*filter(blocks_of, PAGES)], ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(page, tmp_path):
    namespace = {"__name__": "__main__"}
    with contextlib.chdir(tmp_path):
        for number, block in enumerate(blocks_of(page)):
            exec(compile(block, f"{page.name}[{number}]", "exec"), namespace)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The pages that a build makes, without their contents."""
    folder = tmp_path_factory.mktemp("site")
    pages.write(folder / "reference")
    names = [f"gallery/{name}.md" for name in (*NAMES, "index")]
    names += [str(path.relative_to(folder)) for path in folder.rglob("*.md")]
    return {SITE / name for name in names}


def anchors(text):
    """The names of headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken_links(path, text, generated):
    """The links of a page to files or headings that do not exist."""
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        name, _, anchor = link.removeprefix(f"{HOME}/blob/main/").partition("#")
        folder = path.parent if name == link.partition("#")[0] else ROOT
        if "://" in name:
            continue
        target = (folder / name).resolve() if name else path
        exists = SITE in path.parents if target in generated else target.exists()
        headings = anchors(target.read_text()) if anchor and target.is_file() else ()
        if not exists or (anchor and anchor not in headings):
            yield link


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path, generated):
    assert list(broken_links(path, path.read_text(), generated)) == []


def test_a_broken_link_is_found(generated):
    good = "[a](LICENSE) [b](#install) [c](examples/site/index.md) [d](https://docs.jax.dev)\n"
    bad = f"[e](LICENCE)\n```\n[f](g)\n```\n[h](#uninstall) [i]({HOME}/blob/main/h.md)\n"
    # On GitHub, where the README is read, these pages are not.
    bad += "[j](examples/site/reference/index.md)\n"
    found = broken_links(ROOT / "README.md", f"{good}{bad}", generated)
    wanted = ["LICENCE", "#uninstall", f"{HOME}/blob/main/h.md", "examples/site/reference/index.md"]
    assert list(found) == wanted
