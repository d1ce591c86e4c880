"""Changes the library in small ways and lists the changes that no test notices.

    python -m tests.mutation --out mutation.json

The same seed chooses the same changes, an interrupted run goes on where it ended, and nothing is
written to the files of the library.
"""

import argparse
import functools
import itertools
import json
import math
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .changes import Change, changes, compiles
from .covering import ROOT, covering
from .equivalents import EQUIVALENTS
from .running import prepare, run

PLACES = (
    "lift*.py",
    "whole_tree.py",
    "leaf.py",
    "leaves.py",
    *(f"{folder}/*.py" for folder in ("kernels", "recipes", "wrappers", "compose")),
    *(f"{folder}/*.py" for folder in ("initializers", "normalization")),
)


def chosen(count: int, seed: int, only: str = "") -> list[Change]:
    """A sample of all changes, in which no file and no kind of change is forgotten.

    Args:
        count: how many.
        seed: of the random choice.
        only: a part of the paths of the files; "": all files.
    """
    files = [path for place in PLACES for path in sorted((ROOT / "gradtx").glob(place))]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in files}
    found = {name: changes(name, source) for name, source in sources.items() if only in name}
    size = {name: math.sqrt(len(table)) for name, table in found.items() if table}
    sample = []
    for name in size:
        share = max(1, round(count * size[name] / sum(size.values())))
        mixed = _mixed(found[name], random.Random(f"{seed} {name}"))
        good = (change for change in mixed if compiles(change.apply(sources[name])))
        sample += itertools.islice(good, share)
    random.Random(seed).shuffle(sample)
    return sample


def _mixed(table: Iterable[Change], rng: random.Random) -> list[Change]:
    """All changes in random order, each kind as early as any other."""
    kinds = defaultdict(list)
    for change in table:
        kinds[change.kind].append(change)
    places = []
    for several in kinds.values():
        rng.shuffle(several)
        places += [(i + rng.random(), change) for i, change in enumerate(several)]
    return [change for _, change in sorted(places, key=lambda place: place[0])]


def main() -> None:
    """Read the arguments, run what is not yet in the file of results, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mutation.json"), help="the results")
    parser.add_argument("--count", type=int, default=320, help="how many changes to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the paths of the files to change")
    parser.add_argument("--limit", type=int, default=150, help="processor seconds for one change")
    parser.add_argument(
        "--tests", type=int, default=5, help="how many files of tests for one change"
    )
    parser.add_argument("--again", action="store_true", help="run the survivors of --out again")
    arguments = parser.parse_args()

    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    sample = chosen(arguments.count, arguments.seed, arguments.only)
    if arguments.again:
        left = {name for name, result in results.items() if result["outcome"] != "killed"}
        left -= EQUIVALENTS.keys()
        sample = [change for change in _all(results) if change.name in left]
        results = {name: result for name, result in results.items() if name not in left}
    programs = Path(tempfile.mkdtemp(prefix="programs-"))
    prepare(programs)
    try:
        for change in sample:
            if change.name not in results:
                result = _tried(change, arguments.limit, arguments.tests)
                results[change.name] = result | {"kind": change.kind, "line": change.line}
                print(f"{result['outcome']:9} {result['seconds']:6} s  {change.name}", flush=True)
                arguments.out.write_text(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(programs, ignore_errors=True)
    print(report(results))


def _tried(change: Change, limit: int, tests: int) -> dict[str, Any]:
    """What became of a change; a test that fails without it too says nothing about it."""
    result = run(change, covering(change.file, tests), limit)
    is_by_a_test = result["outcome"] == "killed" and "::" in result["by"]
    if is_by_a_test and _fails_anyway(result["by"]):
        return result | {"outcome": "no result", "by": f"fails anyway: {result['by']}"}
    return result


@functools.cache
def _fails_anyway(test: str) -> bool:
    return run(None, [test], limit=300)["outcome"] != "survived"


def _all(results: Iterable[str]) -> list[Change]:
    """The changes of earlier results that the files still have."""
    files = sorted({name.split("::")[0] for name in results})
    return [change for file in files for change in changes(file, (ROOT / file).read_text())]


def report(results: dict[str, dict[str, Any]]) -> str:
    """A table of outcomes by folder, and the survivors that have no reason."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for name, result in results.items():
        outcome = "reason" if name in EQUIVALENTS else result["outcome"]
        for row in (name.split("::")[0].removeprefix("gradtx/").split("/")[0], "all"):
            table[row][outcome] += 1
    columns = ("killed", "reason", "survived", "too slow", "no result")
    rows = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, outcomes in sorted(table.items(), key=lambda item: (item[0] == "all", item[0])):
        rows.append(f"| {row} | {' | '.join(str(outcomes[column]) for column in columns)} |")
    left = [
        f"{result['outcome']}: {name} (line {result['line']})"
        for name, result in results.items()
        if result["outcome"] != "killed" and name not in EQUIVALENTS
    ]
    return "\n".join([*rows, "", *left])


if __name__ == "__main__":
    main()
