"""The gallery: one page that is valid, readable everywhere and self-contained."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from examples.experiments import gallery
from examples.experiments.experiment import Check, Outcome

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The elements of a page in their order; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else None, data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self, tag):
        return [text for name, text in self.text if name == tag and text]


def exhibit(name, holds):
    figure = Figure(figsize=(4, 3))
    figure.suptitle('Over "all" & <all>')
    for axes, title in zip(figure.subplots(1, 2), ("left < right", ""), strict=True):
        axes.plot([0, 1])
        axes.set_title(title)
    checks = [Check("x < y & <b>", "1 < 2", True), Check('"quoted"', "3 °C", holds)]
    outcome = Outcome(checks, figure, "See <i>this</i> & that.")
    explanation = "First.\n\nSecond a < b\nlonger:\n\n    x = 1\n    y <- x\n"
    return gallery.Exhibit(
        name, f"{name} <claims>", explanation, outcome, 1.25, gallery.to_png(outcome)
    )


@pytest.fixture(scope="module")
def exhibits():
    return [exhibit("first", True), exhibit("noisy-second", False)]


@pytest.fixture(scope="module")
def source(exhibits):
    return gallery.page(exhibits, "Quick & small.")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_page_is_an_english_html5_document_for_any_width(source, page):
    assert source.startswith("<!DOCTYPE html>\n")
    assert page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta")
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in page.all("meta")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [attributes["aria-labelledby"] for attributes in page.all("article")]
    assert set(labels) <= set(ids)


def test_the_page_needs_nothing_else(source, page):
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "video", "audio"}
    )
    sources = [a[key] for _, a in page.elements for key in ("src", "srcset") if key in a]
    assert len(sources) == 2
    assert all(text.startswith("data:image/png;base64,") for text in sources)
    assert not re.search(r"url\(|@import|https?:|\son\w+=", source)


def test_the_summary_counts_and_links_every_experiment(page):
    assert "1 of 2 claims held" in page.texts("p")
    assert page.texts("title") == ["gradtx experiments: 1 of 2 claims held"]
    assert [a["href"] for a in page.all("a")] == ["#first", "#noisy-second", "#top", "#top"]
    assert [a["id"] for a in page.all("article")] == ["first", "noisy-second"]
    assert any("Quick & small." in text for text in page.texts("p"))


def test_a_card_shows_claim_verdict_checks_and_caption_as_they_are(page):
    assert page.texts("h2") == ["first", "noisy-second"]
    assert "first <claims>" in page.texts("p")
    assert page.texts("td") == ["x < y & <b>", "1 < 2", '"quoted"', "3 °C"] * 2
    assert page.texts("th") == ["what should hold", "measured", "held"] * 2
    assert page.texts("figcaption") == ["See <i>this</i> & that."] * 2
    contents, cards = ["held", "did not hold"], ["held", "yes", "yes", "did not hold", "yes", "no"]
    assert page.texts("span") == contents + cards
    assert "Second a < b\nlonger:" in page.texts("p")
    assert page.texts("pre") == ["x = 1\ny <- x"] * 2


def test_a_picture_is_embedded_with_its_size_and_described(page, exhibits):
    for attributes, shown in zip(page.all("img"), exhibits, strict=True):
        data = base64.b64decode(attributes["src"].partition(",")[2], validate=True)
        assert data == shown.picture
        height, width, _ = image.imread(io.BytesIO(data)).shape
        assert (attributes["width"], attributes["height"]) == (str(width), str(height))
        assert attributes["alt"] == 'Over "all" & <all>. Panels: left < right.'


def test_the_page_is_written_as_index_in_a_new_folder(tmp_path, exhibits, source):
    path = gallery.write(exhibits, tmp_path / "a" / "b", "Quick & small.")
    assert path == tmp_path / "a" / "b" / "index.html"
    assert path.read_text(encoding="utf-8") == source


def luminance(color):
    """The relative luminance of #rrggbb: Web Content Accessibility Guidelines 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_and_dark_and_on_paper(source):
    def colors(rule):
        (block,) = re.findall(rf"{rule}[^}}]*?:root {{(.*?)}}", source, re.S)
        return dict(re.findall(r"(--\w+): (#\w{6})", block))

    light = colors("<style>\n")
    dark = light | colors(r"prefers-color-scheme: dark\) {")
    paper = light | colors("@media print {")
    for scheme in (light, dark, paper):
        for text in ("--text", "--soft", "--link"):
            for background in ("--page", "--card"):
                assert contrast(scheme[text], scheme[background]) >= 4.5
    for scheme in (light, dark):
        assert contrast("#ffffff", scheme["--held"]) >= 4.5
        assert contrast("#ffffff", scheme["--failed"]) >= 4.5
