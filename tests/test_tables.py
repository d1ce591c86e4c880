"""Tables for people to read."""

import itertools
import re

import pytest

from gradtx.tables import collapsed, html_table, text_table

HEADINGS = ["name", "size"]
ROWS = [["kernel", "1,024"], ["<b>&", "8"]]


def test_text_is_aligned_to_the_left_and_numbers_to_the_right():
    assert text_table(HEADINGS, ROWS, numeric={1}) == [
        "name     size",
        "kernel  1,024",
        "<b>&        8",
    ]
    assert text_table(HEADINGS, [["a", "b"]]) == ["name  size", "a     b"]
    assert text_table(HEADINGS, []) == ["name  size"]


def test_html_is_escaped_and_emphasized():
    page = html_table(HEADINGS, ROWS, caption="a < b", bold=[0])
    assert page == (
        "<table><caption>a &lt; b</caption>"
        "<thead><tr><th>name</th><th>size</th></tr></thead><tbody>"
        '<tr style="font-weight:bold"><td>kernel</td><td>1,024</td></tr>'
        "<tr><td>&lt;b&gt;&amp;</td><td>8</td></tr></tbody></table>"
    )


def test_html_has_titles_above_the_rows_of_a_section():
    page = html_table(HEADINGS, ROWS, caption="", titles={1: "a -> b"})
    _, _, body = page.partition("<tbody>")
    assert body == (
        "<tr><td>kernel</td><td>1,024</td></tr>"
        '<tr><th colspan="2" style="text-align:left">a -&gt; b</th></tr>'
        "<tr><td>&lt;b&gt;&amp;</td><td>8</td></tr></tbody></table>"
    )


def test_rows_that_differ_in_numbers_share_one():
    paths = [f"layers/{i}/{name}" for i in range(12) for name in ("kernel", "bias")]
    assert collapsed([(path, "") for path in paths]) == [
        ("layers/[0-11]/kernel", list(range(0, 24, 2))),
        ("layers/[0-11]/bias", list(range(1, 24, 2))),
    ]
    rows = [("conv_0", 64), ("conv_1", 64), ("conv_2", 128), ("conv_3", 64), ("norm", 64)]
    assert collapsed(rows) == [
        ("conv_[0-1,3]", [0, 1, 3]),
        ("conv_2", [2]),
        ("norm", [4]),
    ]
    assert collapsed([("b", 0), ("01", 0), ("02", 0)]) == [("b", [0]), ("[01-02]", [1, 2])]
    assert collapsed([]) == []


DEPTHS = {"resnet50": (3, 4, 6, 3), "equal": (2, 2, 2), "growing": (1, 2, 3)}


def written_out(name):
    """All names that a name with ranges stands for."""
    head, *parts = re.split(r"\[([\d,-]+)\]", name)
    ranges, texts = parts[::2], parts[1::2]
    numbers = []
    for text in ranges:
        ends = [run.split("-") for run in text.split(",")]
        numbers.append([n for end in ends for n in range(int(end[0]), int(end[-1]) + 1)])
    for chosen in itertools.product(*numbers):
        yield head + "".join(f"{n}{text}" for n, text in zip(chosen, texts, strict=True))


@pytest.mark.parametrize("name", DEPTHS)
def test_ranges_stand_for_the_names_that_there_are_and_for_no_other(name):
    paths = [f"stage{i}/{j}/w" for i, depth in enumerate(DEPTHS[name]) for j in range(depth)]
    found = collapsed([(path, None) for path in paths])
    for common, indices in found:
        assert sorted(written_out(common)) == sorted(paths[i] for i in indices)
    assert sorted(i for _, indices in found for i in indices) == list(range(len(paths)))
    assert len(found) == len(set(DEPTHS[name]))
