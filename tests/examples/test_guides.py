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
# Their programs work with the strictest settings of JAX too; all others run as in a notebook.
STRICT = ("09", "17", "18", "19", "20", "21")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = [code for _, code in CELL.findall(guide.read_text())]
    assert cells
    is_strict = guide.name[:2] in STRICT
    with (
        contextlib.chdir(tmp_path),
        mpl.rc_context({"backend": "agg"}),
        jax.numpy_rank_promotion("raise" if is_strict else "allow"),
        jax.numpy_dtype_promotion("strict" if is_strict else "standard"),
    ):
        # One program, as in the notebook; the parts keep the numbers of their lines apart.
        namespace = {"__name__": "__main__"}
        for number, code in enumerate(cells):
            exec(compile(code, f"{guide.name}[{number}]", "exec"), namespace)
