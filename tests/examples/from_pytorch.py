"""What the guide for users of PyTorch says: the rows of its tables, and its programs."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GUIDE = Path(__file__).parents[2] / "examples" / "site" / "guides" / "03_from_pytorch.md"
STORED = Path(__file__).with_name("from_pytorch.npz")

# The section whose rows give two expressions that one might take for the same.
DIFFERENT = "Alike, but not the same"
CODE = re.compile("`([^`]+)`")


class Row(NamedTuple):
    """A line of a table: expressions of both libraries, and how close they are said to be."""

    section: str
    torch: str
    gradtx: str
    note: str


def rows() -> list[Row]:
    """All rows of all tables of two expressions each."""
    found, section = [], ""
    for line in GUIDE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "PyTorch":
            torch, gradtx, note = cells
            # A second code in a cell belongs to the first, as a schedule to its optimizer.
            found.append(Row(section, " with ".join(CODE.findall(torch)), gradtx.strip("`"), note))
    return found


def first_cell() -> str:
    """The data that the programs of both libraries work on."""
    match = re.search(r"```\{code-cell\}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert match
    return match[1]


def torch_programs() -> list[str]:
    """The programs that are printed, but not executed, when the site is built."""
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [program for program in programs if "torch" in program]


def store(groups: dict[str, dict[str, Any]]) -> None:
    """Write all numbers as one array, and where they are in it, with all texts, as another.

    An archive with a file for each of hundreds of small arrays would be twice as large.
    """
    numbers: list[np.ndarray] = []
    end = 0
    index: dict[str, dict[str, Any]] = {}
    for group, values in groups.items():
        index[group] = {}
        for name, value in values.items():
            array = np.asarray(value)
            if array.dtype.kind == "U":
                index[group][name] = value
                continue
            numbers.append(array.astype(np.float64).ravel())
            index[group][name] = {"start": end, "shape": array.shape}
            end += array.size
    text = np.array(json.dumps(index))
    np.savez_compressed(STORED, index=text, numbers=np.concatenate(numbers))


def stored() -> dict[str, dict[str, Any]]:
    """The groups that were written: arrays, texts and lists of texts by name."""

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        shape, start = value["shape"], value["start"]
        return numbers[start : start + math.prod(shape)].reshape(shape)

    with np.load(STORED) as file:
        index, numbers = json.loads(str(file["index"])), file["numbers"]
    return {
        group: {name: read(value) for name, value in values.items()}
        for group, values in index.items()
    }
