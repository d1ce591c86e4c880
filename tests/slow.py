"""Which tests `pytest` alone leaves out, because they take long.

`slow.txt` lists the test functions whose tests take more than `LIMIT` seconds on average. Renew it
where the machine has nothing else to do:

    pytest tests gradtx --junitxml=times.xml -o junit_family=xunit1
    python -m tests.slow times.xml
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

LIMIT = 0.2
LIST = Path(__file__).with_name("slow.txt")
SLOW = frozenset(LIST.read_text().split())
FILES = frozenset(name.partition("::")[0] for name in SLOW)


def function_of(nodeid: str) -> str:
    """The name of a test without its parameters."""
    return nodeid.partition("[")[0]


def slow_functions(report: Path) -> list[str]:
    """The functions that a report of all tests shows to be slow."""
    times = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        file, name = case.attrib["file"], case.attrib["name"]
        module = file.removesuffix(".py").replace("/", ".")
        classes = case.attrib["classname"].removeprefix(module).strip(".")
        parts = [file, *filter(None, classes.split(".")), name]
        times[function_of("::".join(parts))].append(float(case.attrib["time"]))
    # What the examples of docstrings show is for every day.
    return sorted(
        name for name, own in times.items() if mean(own) > LIMIT and name.startswith("tests/")
    )


if __name__ == "__main__":
    LIST.write_text("\n".join(slow_functions(Path(sys.argv[1]))) + "\n")
