"""The README's tables, from kernels, docstrings and differences: `python -m gradtx.catalogue`."""

import inspect
import re
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

import gradtx
from gradtx import differences
from gradtx.compose.parts import Locality, locality_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.lift import kernel_of

Kind: TypeAlias = Literal["optimizer", "piece", "wrapper"]

_INNER = gradtx.sgd(0.1)
# An argument means the same thing everywhere, so that one value serves all methods.
_ARGUMENTS: dict[str, Any] = {
    "adv_optimizer": _INNER,
    "base_optimizer": _INNER,
    "clipping": 0.1,
    "decay": 0.9,
    "direction": _INNER,
    "eta": 0.01,
    "every_k_schedule": 2,
    "factors": lambda path: 1.0,
    "fast_optimizer": _INNER,
    "gamma": 0.55,
    "inner": _INNER,
    "key": 0,
    "l2_norm_clip": 1.0,
    "learning_rate": 0.1,
    "magnitude": _INNER,
    "max_consecutive_errors": 3,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "measure": gradtx.global_norm,
    "measure_name": "norm",
    "measures": {"norm": gradtx.global_norm},
    "noise_multiplier": 1.0,
    "opt": _INNER,
    "optimizer": _INNER,
    "seed": 0,
    "slow_step_size": 0.5,
    "step_size": 0.1,
    "step_size_fn": optax.constant_schedule(0.1),
    "sync_period": 2,
    "threshold": 1.0,
    "tx": _INNER,
    "window": 4,
}
# Large enough that what a matrix keeps for its rows and columns hardly counts.
_MATRIX = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: the public name.
        kind: "optimizer" of what takes a learning rate or finds its own, "piece" of what stands in
            a chain, "wrapper" of what takes another transformation.
        summary: the first sentence of its docstring.
        papers: their authors and years.
        state_bytes: what it keeps for each float32 parameter of a matrix of 1024 by 1024, in bytes.
        locality: what an element's update depends on: that "element" alone, its whole "leaf", or
            the whole "tree", if only by its norm.
    """

    name: str
    kind: Kind
    summary: str
    papers: str
    state_bytes: float
    locality: Locality


def methods(kind: Kind = "optimizer") -> list[Method]:
    """All public methods of a kind, by name, with their defaults.

    Args:
        kind: "optimizer", "piece" or "wrapper".

    Returns:
        One `Method` for each.

    Example:
        >>> from gradtx.catalogue import methods
        >>> adam = next(method for method in methods() if method.name == "adam")
        >>> adam.papers, adam.state_bytes, adam.locality
        ('Kingma & Ba 2015', 8.0, 'element')
    """
    factories: dict[str, Callable[..., Any]] = dict(inspect.getmembers(gradtx, inspect.isfunction))
    # A class, because it is one in optax.
    factories["MultiSteps"] = gradtx.MultiSteps
    return [
        _method(name, factory, kind)
        for name, factory in sorted(factories.items(), key=lambda item: item[0].lower())
        if _kind(name, factory) == kind
    ]


def table(kind: Kind = "optimizer") -> str:
    """The methods of a kind as a table in Markdown."""
    rows = ["| Name | | Paper | State | Local to |", "|-|-|-|-|-|"]
    for method in methods(kind):
        size = f"{method.state_bytes:.1f}".removesuffix(".0")
        cells = (f"`{method.name}`", method.summary, method.papers, size, method.locality)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _kind(name: str, factory: Callable[..., Any]) -> Kind | None:
    signature = inspect.signature(factory)
    returned = factory if inspect.isclass(factory) else signature.return_annotation
    if returned is gradtx.MultiSteps:
        return "wrapper"
    if "GradientTransformation" not in getattr(returned, "__name__", str(returned)):
        return None
    package = factory.__module__.split(".")[1]
    if "factory" in signature.parameters:
        return None  # with_hyperparams, which is what its factory is
    if package == "wrappers":
        return "wrapper" if {*signature.parameters} & _TRANSFORMATIONS else "piece"
    if package == "recipes":
        return "optimizer"
    if package != "kernels":
        return None
    is_whole = "learning_rate" in signature.parameters and not name.startswith("scale_by_")
    return "optimizer" if is_whole else "piece"


_TRANSFORMATIONS = {name for name, value in _ARGUMENTS.items() if value is _INNER}


def _method(name: str, factory: Callable[..., Any], kind: Kind) -> Method:
    arguments = {
        argument.name: _ARGUMENTS[argument.name]
        for argument in inspect.signature(factory).parameters.values()
        if argument.name in _ARGUMENTS
        and (argument.default is argument.empty or argument.name == "key")
    }
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        tx = factory(**arguments)
    tx = as_transformation("catalogue", name, tx)
    document = inspect.getdoc(factory) or ""
    kept = jax.tree.leaves(jax.eval_shape(tx.init, _MATRIX))
    return Method(
        name=name,
        kind=kind,
        summary=document.split("\n\n")[0].replace("\n", " ").removesuffix("."),
        papers=_papers(document),
        state_bytes=round(sum(x.size * x.dtype.itemsize for x in kept) / _MATRIX.size, 2),
        locality=_locality(tx),
    )


def _papers(document: str) -> str:
    """Authors and years from the section on sources."""
    found = re.search(r"\nSource:\n((?: .*\n|\n)*)", document + "\n")
    text = " ".join(found.group(1).split()) if found else ""
    # Titles may hold years too.
    text = re.sub(r'"[^"]*"', "", text)
    name = r"[A-Z][\w']+(?:-[A-Z][\w']+)*"
    names = re.findall(rf"((?:{name}(?:, | & | and | et al\. | ))+\d{{4}})", text)
    return "; ".join(dict.fromkeys(found.replace(" and ", " & ") for found in names))


def _locality(tx: optax.GradientTransformation) -> Locality:
    kernel, own = kernel_of(tx), locality_of(tx)
    if kernel is not None:
        return "tree" if kernel.measures else "element" if kernel.elementwise else "leaf"
    # What is no kernel and has no known parts may do anything.
    found = {own or "tree", *(_locality(part.transformation) for part in parts_of(tx))}
    return next(each for each in ("tree", "leaf", "element") if each in found)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # ends without a word when piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    kinds = [table("optimizer"), table("piece"), table("wrapper")]
    print(*kinds, differences.table(), sep="\n\n")
