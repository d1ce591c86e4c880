"""Tables for people."""

from gradtx.tables import html_table, text_table

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
