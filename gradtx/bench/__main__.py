"""Compares gradtx with optax, and its normalization with flax, in one process on this machine.

    python -m gradtx.bench [--only SECTION ...] [--repeats N] [--cpu-time] [--quick]
                           [--json FILE] [--plot FILE]

Every figure is a median of measurements that the libraries take in turn, and every ratio is
theirs / ours: larger is better for gradtx. The programs are compiled, and give the memory of the
parameters and the state away. The sections:

- trace, compile, step: `chain(clip_by_global_norm(1.0), adamw(1e-3))` and the addition of its
  updates, on five trees. The bound is the time for reading and writing the same arrays once.
- eager: the same update, not compiled.
- construction, import: building a transformation, and importing the library after jax.
- normalization: forward and backward, beside flax if it is installed.
- methods: each optimizer that both libraries have, on 12 matrices of 256 by 256 and 24 vectors.

The file of `--json` holds an object: "jax", "jaxlib", "optax" and "gradtx" are their versions,
"device" and "cpus" name the machine, "clock" is "wall" or "cpu", "repeats" the number of
measurements, and "figures" a list of objects with the fields of `gradtx.bench.measure.Figure` and
their "ratio" (null where gradtx needs nothing).
"""

import argparse
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import optax

import gradtx
from gradtx.bench import normalization, report, sections
from gradtx.bench.measure import Figure, Settings
from gradtx.bench.methods import methods
from gradtx.diagnostics import _extras

SECTIONS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "trace": sections.trace,
    "compile": sections.compile,
    "step": sections.step,
    "eager": sections.eager,
    "construction": sections.construction,
    "import": sections.import_,
    "normalization": normalization.normalization,
    "methods": methods,
}
_REPEATS = 15
_PICTURES = (".pdf", ".png", ".svg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write what else was asked for.

    Args:
        arguments: those of the command line.

    Raises:
        ImportError: if a plot is asked for and matplotlib is not installed.
    """
    options = _parser().parse_args(arguments)
    if options.plot:
        _extras.load("matplotlib")  # better now than after minutes of measuring
    # A program that another process has compiled would take no time.
    jax.config.update("jax_enable_compilation_cache", False)
    repeats = options.repeats or (1 if options.quick else _REPEATS)
    settings = Settings(repeats, cpu_time=options.cpu_time, quick=options.quick)
    about = _about(settings)
    title = (
        f"jax {about['jax']}, jaxlib {about['jaxlib']}, optax {about['optax']}, "
        f"{about['device']}, {about['cpus']} CPUs, {about['clock']} time, medians"
    )
    print(title, flush=True)
    figures = list(_measured(options.only, settings))
    print("\nslower than the other library, or with more memory")
    print("\n".join(f"  {line}" for line in report.losses(figures)) or "  nothing")
    if options.json:
        rows = [{**dataclasses.asdict(figure), "ratio": figure.ratio} for figure in figures]
        _parent_of(options.json).write_text(json.dumps({**about, "figures": rows}, indent=1) + "\n")
    if options.plot:
        report.chart(figures, title).savefig(_parent_of(options.plot), dpi=120)


def _measured(names: Sequence[str], settings: Settings) -> Iterator[Figure]:
    """All figures of some sections, each printed when it is complete."""
    for name, section in SECTIONS.items():
        if name not in names:
            continue
        notice = normalization.missing() if name == "normalization" else None
        if notice is not None:
            print(f"\n{notice}", flush=True)
            continue
        figures = list(section(settings))
        print(f"\n{name}", *(f"  {line}" for line in report.table(figures)), sep="\n", flush=True)
        yield from figures


def _about(settings: Settings) -> dict[str, Any]:
    """The versions, the machine and the way of measuring."""
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "optax": optax.__version__,
        "gradtx": gradtx.__version__,
        "device": jax.devices()[0].device_kind,
        "cpus": len(usable(0)) if usable else os.cpu_count(),
        "clock": "cpu" if settings.cpu_time else "wall",
        "repeats": settings.repeats,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gradtx.bench",
        description="Compare gradtx with optax and flax on this machine: ratios theirs / ours.",
    )
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"measure only these: {', '.join(SECTIONS)}",
    )
    add(
        "--repeats",
        type=_count,
        metavar="N",
        help=f"measurements of each figure, a third as many (but 5) of slow ones: {_REPEATS}",
    )
    add("--cpu-time", action="store_true", help="measure processor time, for a busy machine")
    add("--quick", action="store_true", help="tiny sizes, once, only to see that everything runs")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--plot", type=_picture, metavar="FILE", help="draw the ratios there")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _picture(text: str) -> Path:
    if Path(text).suffix not in _PICTURES:
        raise argparse.ArgumentTypeError(f"must end in .pdf, .png or .svg, got {text!r}")
    return Path(text)


def _parent_of(file: Path) -> Path:
    """The file, in a folder that exists."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # ends without a word when piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
