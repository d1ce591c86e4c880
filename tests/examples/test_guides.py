"""The guides of the documentation site are programs that run from top to bottom."""

import contextlib
import re
from pathlib import Path

import jax
import matplotlib as mpl
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "site" / "guides"
GUIDES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
CELL = re.compile(r"```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)```", re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = [code for _, code in CELL.findall(guide.read_text())]
    assert cells
    with (
        contextlib.chdir(tmp_path),
        mpl.rc_context({"backend": "agg"}),
        # As they are in a notebook.
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        # One program, as in the notebook; the parts keep the numbers of their lines apart.
        namespace = {"__name__": "__main__"}
        for number, code in enumerate(cells):
            exec(compile(code, f"{guide.name}[{number}]", "exec"), namespace)
