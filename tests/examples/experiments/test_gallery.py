"""The gallery: Markdown that shows claims, explanations, checks and code as they are."""

import io

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from examples.experiments import gallery
from examples.experiments.experiment import Check, Outcome

CODE = '"""Says ```so```."""\n\nx = 1\n'


def exhibit(name, holds):
    figure = Figure(figsize=(4, 3))
    figure.suptitle('Over "all" & <all>')
    for axes, title in zip(figure.subplots(1, 2), ("left < right", ""), strict=True):
        axes.plot([0, 1])
        axes.set_title(title)
    checks = [Check("|x| < y & <b>", "1 < 2", True), Check('"quoted"', "3 °C", holds)]
    outcome = Outcome(checks, figure, "See <i>this</i> & that: a_b * c_d.")
    explanation = "First `a_b`.\n\nSecond a < b\nlonger:\n\n    x_1 = 1\n      y <- x_1\n"
    return gallery.Exhibit(
        name, f"{name} [claims]", explanation, outcome, 1.25, gallery.to_png(outcome), CODE
    )


@pytest.fixture(scope="module")
def exhibits():
    return [exhibit("first", True), exhibit("noisy-second", False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, exhibits):
    folder = tmp_path_factory.mktemp("site") / "a" / "gallery"
    assert gallery.write(exhibits, folder, "Quick & small.") == folder / "index.md"
    return folder


def read(folder, name):
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def test_the_list_counts_and_links_every_experiment(folder):
    page = read(folder, "index")
    assert page.startswith("# Experiments\n")
    assert "**1 of 2 claims held.** Quick & small.\n" in page
    assert "| [first](first.md) | first \\[claims\\] | held |\n" in page
    assert (
        "| [noisy-second](noisy-second.md) | noisy-second \\[claims\\] | did not hold |\n" in page
    )
    assert page.endswith("```{toctree}\n:hidden:\n\nfirst\nnoisy-second\n```\n")


@pytest.mark.parametrize(
    ("name", "words", "held"),
    [("first", "held", "yes"), ("noisy-second", "did not hold", "no")],
    ids=["first", "second"],
)
def test_a_page_shows_claim_verdict_and_checks(folder, name, words, held):
    page = read(folder, name)
    assert page.startswith(f"# {name}\n\n**{name} \\[claims\\]**\n")
    assert f"\nThe claim {words}.\n" in page
    assert "| \\|x\\| \\< y & \\<b\\> | 1 \\< 2 | yes |\n" in page
    assert f'| "quoted" | 3 °C | {held} |\n' in page
    assert "\nQuick & small. This took 1.2 seconds.\n" in page


def test_equations_keep_their_lines_and_code_its_backticks(folder):
    page = read(folder, "first")
    assert "\nFirst `a_b`.\n\nSecond a \\< b\nlonger:\n\n" in page
    block = "```{code-block} none\n:class: equation\n\nx_1 = 1\n  y <- x_1\n```\n"
    assert f"\n{block}" in page
    assert page.endswith(f"````{{code-block}} python\n{CODE}````\n")


def test_a_picture_lies_beside_its_page_with_a_description_and_a_caption(folder, exhibits):
    for shown in exhibits:
        assert (folder / f"{shown.name}.png").read_bytes() == shown.picture
        assert image.imread(io.BytesIO(shown.picture)).std() > 0.05
        assert (
            f"```{{figure}} {shown.name}.png\n"
            ':alt: "Over \\"all\\" & <all>. Panels: left < right."\n\n'
            "See \\<i\\>this\\</i\\> & that: a\\_b \\* c\\_d.\n```\n"
        ) in read(folder, shown.name)
