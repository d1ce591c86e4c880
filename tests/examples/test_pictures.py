"""The pictures of the README are those that a command draws, and small enough for a page."""

import re

import pytest
from matplotlib import image

from examples.site import pictures

ROOT = pictures.HERE.parents[1]


@pytest.mark.parametrize("page", [ROOT / "README.md", pictures.HERE / "index.md"], ids=str)
def test_a_page_shows_all_pictures(page):
    shown = re.findall(r"!\[[^\]]{20,}\]\(\S*static/(\w+)\.png\)", page.read_text())
    assert shown == list(pictures.PICTURES)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_there_and_small(name):
    path = pictures.HERE / "static" / f"{name}.png"
    assert path.stat().st_size < 60_000
    assert image.imread(path).std() > 0.05


# The others train longer; `.ci/run` draws them too.
@pytest.mark.parametrize("name", ["explain", "contract"])
def test_the_command_draws_what_is_shown(name, tmp_path, capsys):
    assert pictures.main([name, "--out", str(tmp_path)]) == 0
    [path] = tmp_path.iterdir()
    assert path.name == f"{name}.png"
    assert str(path) in capsys.readouterr().out
    drawn, shown = (image.imread(each) for each in (path, pictures.HERE / "static" / path.name))
    assert drawn.shape == shown.shape
    # Letters may lie a little differently with other versions of matplotlib.
    assert abs(drawn - shown).mean() < 0.02


def test_an_unknown_picture_is_named(capsys):
    with pytest.raises(SystemExit):
        pictures.main(["explane"])
    assert "did you mean explain?" in capsys.readouterr().err
