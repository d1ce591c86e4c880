"""Names and values in messages: enough to act on, whatever the size of the tree."""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

_T = TypeVar("_T")
_NAMES = 10
_CHARACTERS_OF_A_NAME = 100
_CHARACTERS_OF_A_VALUE = 200


def listed(names: Iterable[object], limit: int = _NAMES, *, near: str | None = None) -> str:
    """Names for a message: at most `limit` of them, and how many more there are.

    Args:
        names: paths, labels or other short things; strings are shown in quotes.
        limit: how many to show.
        near: a name or a regular expression that was not found. The names that have most of its
            words come first, and a suggestion is made for words that none of them has.

    Example:
        >>> from gradtx.messages import listed
        >>> listed(["encoder/kernel", "encoder/bias", "head/kernel"], 2, near="head/.*kernal")
        "['head/kernel', 'encoder/kernel'] and 1 more; did you mean 'kernel'?"
    """
    names = list(names)
    hint = ""
    if near is not None:
        words, suggestions = _words_of(near, [str(name) for name in names])
        names.sort(key=lambda name: -sum(word in str(name) for word in words))
        hint = f"; did you mean {' and '.join(map(repr, suggestions))}?" if suggestions else ""
    texts = [
        _cut(repr(name) if isinstance(name, str) else str(name), _CHARACTERS_OF_A_NAME)
        for name in names[:limit]
    ]
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"[{', '.join(texts)}]{more}{hint}"


def shown(value: object) -> str:
    """A value for a message: one line, arrays as their dtype and shape, long ones cut.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.messages import shown
        >>> shown({"kernel": jnp.ones((2, 3)), "bias": [0.5, None]})
        "{'bias': [0.5, None], 'kernel': float32[2,3]}"
    """
    return _cut(" ".join(_BRIEF.repr(value).split()), _CHARACTERS_OF_A_VALUE)


def for_static(argument: str, value: object) -> str:
    """The end of a message where an array is given for what the program itself depends on.

    optax's `inject_hyperparams` makes arrays of all numbers, and calls functions as schedules.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.messages import for_static
        >>> for_static("ns_steps", 5), for_static("ns_steps", jnp.array(5))[:27]
        ('', '; gradtx.inject_hyperparams')
    """
    if not isinstance(value, jax.Array):
        return ""
    return (
        f"; gradtx.inject_hyperparams leaves it alone, and so does that of optax with "
        f"static_args=({argument!r},)"
    )


def one_of_each(named: Mapping[str, _T], kind_of: Callable[[_T], Hashable]) -> dict[str, _T]:
    """The first of each kind, for a message that says that kinds differ.

    Example:
        >>> from gradtx.messages import one_of_each
        >>> one_of_each({"a": (4, 2), "b": (4, 3), "c": (5, 2)}, lambda shape: shape[0])
        {'a': (4, 2), 'c': (5, 2)}
    """
    firsts: dict[Hashable, tuple[str, _T]] = {}
    for name, value in named.items():
        firsts.setdefault(kind_of(value), (name, value))
    return dict(firsts.values())


@contextlib.contextmanager
def in_the_name_of(owner: str) -> Iterator[None]:
    """Let the errors of `select` begin with the name of the function that the user called.

    Example:
        >>> from gradtx.messages import in_the_name_of
        >>> with in_the_name_of("grouped"):
        ...     raise ValueError("select: 'kernl' matches nothing")
        Traceback (most recent call last):
        ValueError: grouped: 'kernl' matches nothing
    """
    try:
        yield
    except ValueError as error:
        name, colon, rest = str(error).partition(": ")
        if name not in ("select", "select.groups"):
            raise
        raise ValueError(f"{owner}{colon}{rest}") from error


class _Brief(reprlib.Repr):
    """`repr` that reads neither the elements of arrays nor all of a long container."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = _NAMES
        self.maxstring = self.maxother = _CHARACTERS_OF_A_VALUE

    def repr1(self, x: Any, level: int) -> str:
        # A module has a function of this name.
        is_array = hasattr(x, "dtype") and isinstance(getattr(x, "shape", None), tuple)
        if is_array and np.size(x) > 1:
            return f"{x.dtype}[{','.join(map(str, np.shape(x)))}]"
        names = getattr(x, "_fields", None)
        if isinstance(x, tuple) and names is not None:
            fields = [f"{k}={self.repr1(v, level - 1)}" for k, v in zip(names, x, strict=True)]
            return f"{type(x).__name__}({', '.join(fields)})"
        return super().repr1(x, level)


_BRIEF = _Brief()


def _cut(text: str, width: int) -> str:
    """The text, with dots in place of its middle if it is longer than `width`."""
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:]}"


def _words_of(pattern: str, names: list[str]) -> tuple[list[str], list[str]]:
    """The words of a pattern that occur in names, and the words closest to its other ones."""
    found, suggestions = [], []
    parts = list(dict.fromkeys(part for name in names for part in name.split("/")))
    for word in re.findall(r"\w+", re.sub(r"\\.", " ", pattern)):
        if any(word in name for name in names):
            found.append(word)
        else:
            suggestions += difflib.get_close_matches(word, parts, n=1)
    return found + suggestions, list(dict.fromkeys(suggestions))
