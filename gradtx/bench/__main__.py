"""Compare gradtx with optax, and its normalization with flax, in one process on this machine.

    python -m gradtx.bench [--only SECTION ...] [--repeats N] [--cpu-time] [--quick]
                           [--json FILE] [--plot FILE]
    python -m gradtx.bench --device [--cases NAME ...] [--repeats N] [--quick] [--json FILE]

Every figure is a median of interleaved measurements of the libraries, and every ratio is
theirs / ours: larger is better for gradtx. The programs are compiled, with the parameters and the
state donated. The sections:

- trace, compile, step: `chain(clip_by_global_norm(1.0), adamw(1e-3))` and the addition of its
  updates, on five trees. The bound is the time to read and write the same arrays once.
- eager: the same update, not compiled.
- construction, import: building a transformation, and importing the library after jax.
- normalization: forward and backward, compared with flax if it is installed.
- methods: each optimizer that both libraries have, on 12 matrices of 256 by 256 and 24 vectors.
- grouped: the step of the first sections on 1,000 leaves of 64 numbers, in gradtx's `grouped`.
- grouped-matrices: Muon, SOAP and Shampoo on 48 equal matrices, in `grouped` and without it.
- quantized: AdamW on a transformer, in `quantize_state` or `cast_state` and without.

`--device` measures what steps cost on this device in absolute numbers: their time, which share of
the memory bandwidth they use, how many operations they launch, and the bytes of temporaries and of
the state. It needs only jax, optax and gradtx. The results of all runs of a case must agree, or the
command ends with status 1.

`--json` writes an object: "jax", "jaxlib", "optax" and "gradtx" are the versions, "device" and
"cpus" describe the machine, "clock" is "wall" or "cpu", "repeats" the number of measurements, and
"figures" a list of objects with the fields of `gradtx.bench.measure.Figure` and their "ratio" (null
where gradtx needs nothing). With `--device` there are instead "bandwidth", in bytes per second, and
"runs" with the fields of `gradtx.bench.device.Run`.
"""

from __future__ import annotations

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
from gradtx.bench import device, normalization, report, sections
from gradtx.bench.groups import grouped, grouped_matrices
from gradtx.bench.measure import Figure, Settings
from gradtx.bench.methods import methods
from gradtx.bench.narrow import quantized
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
    "grouped": grouped,
    "grouped-matrices": grouped_matrices,
    "quantized": quantized,
}
_REPEATS = 15
_PICTURES = (".pdf", ".png", ".svg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write the files that were asked for.

    Args:
        arguments: the command-line arguments.

    Raises:
        ImportError: if a plot is requested and matplotlib is not installed.
    """
    options = _parser().parse_args(arguments)
    if options.plot:
        _extras.load("matplotlib")  # fails now rather than after minutes of measuring
    # A program that is in the cache would take no time to compile.
    jax.config.update("jax_enable_compilation_cache", False)
    repeats = options.repeats or (1 if options.quick else _REPEATS)
    settings = Settings(repeats, cpu_time=options.cpu_time, quick=options.quick)
    about = _about(settings)
    title = (
        f"jax {about['jax']}, jaxlib {about['jaxlib']}, optax {about['optax']}, "
        f"{about['device']}, {about['cpus']} CPUs, {about['clock']} time, medians"
    )
    print(title, flush=True)
    if options.device:
        _measure_device(options, settings, about)
        return
    figures = list(_measured(options.only, settings))
    print("\nslower than the other library, or using more memory")
    print("\n".join(f"  {line}" for line in report.losses(figures)) or "  nothing")
    rows = [{**dataclasses.asdict(figure), "ratio": figure.ratio} for figure in figures]
    _write(options.json, {**about, "figures": rows})
    if options.plot:
        report.chart(figures, title).savefig(_parent_of(options.plot), dpi=120)


def _measure_device(options: argparse.Namespace, settings: Settings, about: Any) -> None:
    """Print and write what steps cost on this device.

    Raises:
        SystemExit: if results do not agree.
    """
    bandwidth = device.bandwidth_of_device(settings)
    print(f"\nreads and writes {bandwidth / 1e9:.4g} GB/s\n", flush=True)
    runs = []
    for run in device.runs(settings, bandwidth, options.cases):
        runs.append(run)
        print(f"  {report.brief(run)}", flush=True)
    print("", *(f"  {line}" for line in report.device_table(runs)), sep="\n")
    rows = [dataclasses.asdict(run) for run in runs]
    _write(options.json, {**about, "bandwidth": bandwidth, "runs": rows})
    wrong = [run for run in runs if not run.agrees]
    for run in wrong:
        print(
            f"{run.case}, {run.name}: differs by {run.difference:.2g} of the movement, "
            f"allowed are {run.tolerance:g}"
        )
    if wrong:
        raise SystemExit(1)


def _write(file: Path | None, content: Any) -> None:
    if file:
        _parent_of(file).write_text(json.dumps(content, indent=1) + "\n")


def _measured(names: Sequence[str], settings: Settings) -> Iterator[Figure]:
    """All figures of some sections, each section printed when it is complete."""
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
    """The versions, the machine and the settings of the measurement."""
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
        help=f"measure only these sections: {', '.join(SECTIONS)}",
    )
    add(
        "--repeats",
        type=_count,
        metavar="N",
        help="the number of measurements of each figure, and of slow ones a third as many but at "
        f"least 5 (default: {_REPEATS})",
    )
    add(
        "--device",
        action="store_true",
        help="measure instead what steps cost on this device, in absolute numbers",
    )
    add(
        "--cases",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --device, measure only the cases whose names contain one of these",
    )
    add("--cpu-time", action="store_true", help="measure CPU time, for a busy machine")
    add("--quick", action="store_true", help="run with tiny sizes, once, as a smoke test")
    add("--json", type=Path, metavar="FILE", help="write the figures to a file")
    add("--plot", type=_picture, metavar="FILE", help="plot the ratios to a file")
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
    """The file, after creating its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # exits silently when piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
