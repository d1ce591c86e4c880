"""gradtx: gradient transformations, initializers and normalization for JAX.

Every optimizer, clipping rule and average is a pure `(init, update)` pair of optax's own type,
lifted from an equation on one array. Names and states are optax's, so that either library's
transformations chain with the other's, and either resumes the other's runs.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from inspect import ismodule
from pathlib import Path
from typing import Any

# The class has its module's name. Imported later, the module would hide it.
from gradtx.select import select as select

__version__ = "0.1.0"

# The stub lists the public names, where type checkers and editors read them too; they want the list
# in this file to be written out, which would be a second one.
_STUB = Path(__file__).with_suffix(".pyi").read_text()
_IMPORTS = re.finditer(r"^from (\S+) import \(?\s*(\w+) as ", _STUB, re.MULTILINE)
_HOMES = {name: home for home, name in map(re.Match.groups, _IMPORTS)}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Called the first time that a name is asked for: importing gradtx imports little more than
    # optax, and nobody waits for what they do not use.
    home = _HOMES.get(name, "gradtx")
    if home != "gradtx":
        value = getattr(import_module(home), name)
    elif find_spec(f"gradtx.{name}"):
        value = import_module(f"gradtx.{name}")
    else:
        raise AttributeError(f"module 'gradtx' has no attribute {name!r}{_in_optax(name)}")
    globals()[name] = value
    return value


def _in_optax(name: str) -> str:
    """Where optax has what gradtx has not, as losses and projections, for a message."""
    import optax

    if name.startswith("_") or name not in vars(optax):
        return ""
    own = vars(optax)[name]
    public = {each for each in dir(own) if not each.startswith("_")} if ismodule(own) else set()
    if public and public <= {*_HOMES}:
        return f"; the names of optax.{name} are in gradtx itself"
    return f"; it is in optax: optax.{name}"


def __dir__() -> list[str]:
    # The public names only; the other modules are the parts that these are made of.
    return sorted([*__all__, "__all__", "__doc__", "__version__"])
