"""Which tests `pytest` alone leaves out, because they take long.

`slow.txt` lists the test functions whose tests take more than `LIMIT` seconds on average, with
those of the processes that they wait for. Renew it where the machine has nothing else to do:

    pytest --junitxml=quick.xml; pytest -m slow --junitxml=slow.xml
    python -m tests.slow quick.xml slow.xml
"""

import re
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


def slow_functions(*reports: Path) -> list[str]:
    """The functions that the reports of all tests show to be slow."""
    times = defaultdict(list)
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            # The file in a report is the one in which the function is defined, which may be another
            # one; modules have no names like those of classes.
            module, *classes = re.split(r"\.(?=Test)", case.attrib["classname"])
            parts = [module.replace(".", "/") + ".py", *classes, case.attrib["name"]]
            times[function_of("::".join(parts))].append(float(case.attrib["time"]))
    # What the examples of docstrings show is for every day.
    return sorted(
        name for name, own in times.items() if mean(own) > LIMIT and name.startswith("tests/")
    )


if __name__ == "__main__":
    LIST.write_text("\n".join(slow_functions(*map(Path, sys.argv[1:]))) + "\n")
