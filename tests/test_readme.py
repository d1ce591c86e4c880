"""The README's Python blocks run, in order, as one program, and stay short enough to be read."""

import contextlib
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_python_blocks_run(tmp_path):
    assert len(BLOCKS) >= 3
    namespace = {"__name__": "readme"}
    with contextlib.chdir(tmp_path):
        for block in BLOCKS:
            exec(compile(block, str(README), "exec"), namespace)


def test_it_is_read_in_five_minutes():
    assert len(TEXT) < 15_000, "what is longer belongs on a page in examples/site"
