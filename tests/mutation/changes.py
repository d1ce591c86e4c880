"""Small changes to a source file, each of which a test should notice."""

import ast
import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Change:
    """Other text in one place of a file.

    Attributes:
        file: the path of the file, from the root of the repository.
        kind: what is changed, in a word.
        line: the line where the place begins.
        scope: the function or the assignment around the place, "module" if there is none.
        start: where the place begins, in bytes.
        end: where it ends.
        old: the text there.
        new: the text in its stead.
        number: which one it is among those of one name.
    """

    file: str
    kind: str
    line: int
    scope: str
    start: int
    end: int
    old: str
    new: str
    number: int = 1

    @property
    def name(self) -> str:
        """A name that stays when other lines change."""
        name = f"{self.file}::{self.scope}: {self.old} -> {self.new}"
        return name if self.number == 1 else f"{name} ({self.number})"

    def apply(self, source: str) -> str:
        """The changed file."""
        text = source.encode()
        return (text[: self.start] + self.new.encode() + text[self.end :]).decode()


_OPERATORS: dict[type, tuple[str, ...]] = {
    ast.Add: ("-",),
    ast.Sub: ("+",),
    ast.Mult: ("/",),
    ast.Div: ("*",),
    ast.FloorDiv: ("/",),
    ast.Mod: ("//",),
    ast.BitAnd: ("|",),
    ast.BitOr: ("&",),
}
_COMPARISONS: dict[type, tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
# Functions by other functions of the same arguments.
_FUNCTIONS = {
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "sum": "mean",
    "mean": "sum",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "zeros": "ones",
    "ones": "zeros",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "isfinite": "isnan",
}
# Functions that may be forgotten around their first argument.
_FORGOTTEN = {
    *("abs", "abs_squared", "asarray", "astype", "clip", "conj", "convert_element_type", "debias"),
    *("exp", "expm1", "log", "log1p", "max_norm", "nan_to_num", "rsqrt", "safe_divide", "sign"),
    *("sqrt", "square", "stop_gradient"),
}
_SWAPPED = {
    "b1": "b2",
    "b2": "b1",
    "b3": "b2",
    "beta1": "beta2",
    "beta2": "beta1",
    "mu": "nu",
    "nu": "mu",
    "lower": "upper",
    "upper": "lower",
    "fan_in": "fan_out",
    "fan_out": "fan_in",
}
_STEPS = frozenset({"t", "count", "step"})
_SILENT = (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)


def changes(file: str, source: str) -> list[Change]:
    """All changes of a file, in the order of their places."""
    ordered = sorted(set(_Changes(file, source).collect()), key=lambda c: (c.start, c.end, c.new))
    seen: Counter[str] = Counter()
    numbered = []
    for change in ordered:
        seen[change.name] += 1
        numbered.append(replace(change, number=seen[change.name]))
    return numbered


def compiles(source: str) -> bool:
    """Whether a changed file is one in Python at all."""
    try:
        compile(source, "changed", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


class _Changes:
    """The places of a file where something can be changed."""

    def __init__(self, file: str, source: str) -> None:
        self._file, self._text = file, source.encode()
        self._tree = ast.parse(source)
        self._names: dict[str, set[str]] = defaultdict(set)
        self._names_in(self._tree, "module")
        self._lines = [0]
        for line in self._text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def collect(self) -> Iterator[Change]:
        """Every change."""
        for statement in self._tree.body:
            yield from self._visit(statement, _scope_of(statement, "module"))

    def _names_in(self, node: ast.AST, scope: str) -> None:
        """Note the names that are read in each scope."""
        if isinstance(node, ast.Name | ast.arg):
            self._names[scope].add(node.id if isinstance(node, ast.Name) else node.arg)
        for child in ast.iter_child_nodes(node):
            self._names_in(child, _scope_of(child, scope))

    def _visit(self, node: ast.AST, scope: str) -> Iterator[Change]:
        # Neither the words of messages nor annotations do anything that a test should notice.
        if isinstance(node, _SILENT) or _is_text(node):
            return
        for kind, place, new in self._of(node, scope):
            yield self._change(kind, scope, place, new)
        hidden = {id(part) for part in _for_readers(node)}
        for child in ast.iter_child_nodes(node):
            if id(child) not in hidden:
                yield from self._visit(child, _scope_of(child, scope))

    def _of(self, node: ast.AST, scope: str) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
        match node:
            case ast.BinOp():
                yield from self._arithmetic(node)
            case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
                yield "sign", node, self._of_text(node.operand)
            case ast.Compare(ops=[operator]):
                for other in _COMPARISONS.get(type(operator), ()):
                    left, right = self._of_text(node.left), self._of_text(node.comparators[0])
                    yield "comparison", node, f"{left} {other} {right}"
            case ast.BoolOp():
                word = " or " if isinstance(node.op, ast.And) else " and "
                yield "logic", node, f"({word.join(self._of_text(v) for v in node.values)})"
            case ast.IfExp():
                test, a, b = map(self._of_text, (node.test, node.body, node.orelse))
                yield "condition", node, f"({b} if {test} else {a})"
            case ast.If(test=test) | ast.While(test=test) if not _is_negation(test):
                yield "condition", test, f"not {self._of_text(test)}"
            case ast.Call():
                yield from self._call(node)
            case ast.Constant():
                yield from (("constant", node, new) for new in _other_constants(node.value))
            case ast.Name(ctx=ast.Load()) if _SWAPPED.get(node.id) in self._names[scope]:
                yield "swap", node, _SWAPPED[node.id]
            case ast.Name(ctx=ast.Load()) if node.id in _STEPS:
                yield "step", node, f"({node.id} + 1)"
            case ast.AugAssign() | ast.Expr(value=ast.Call()):
                yield "dropped", node, "pass"
            case ast.Assign(targets=[ast.Name(id=name)]) if _reads(node.value, name):
                yield "dropped", node, "pass"

    def _arithmetic(self, node: ast.BinOp) -> Iterator[tuple[str, ast.expr, str]]:
        left, right = self._of_text(node.left), self._of_text(node.right)
        for other in _OPERATORS.get(type(node.op), ()):
            yield "operator", node, f"({left} {other} {right})"
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow | ast.MatMult):
            yield "dropped", node, left
        if isinstance(node.op, ast.Add | ast.Mult):
            yield "dropped", node, right
        if isinstance(node.op, ast.Pow):
            yield "power", node.right, f"({right} + 1)"

    def _call(self, node: ast.Call) -> Iterator[tuple[str, ast.expr, str]]:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _FUNCTIONS:
            function = self._of_text(node.func).removesuffix(name) + _FUNCTIONS[name]
            yield "function", node.func, function
        if name == "where" and len(node.args) == 3:
            condition, a, b = node.args
            yield "mask", condition, f"~({self._of_text(condition)})"
            yield "mask", node, self._of_text(a)
            yield "mask", node, self._of_text(b)
        if name in _FORGOTTEN:
            is_method = name == "astype" and isinstance(node.func, ast.Attribute)
            inner = node.func.value if is_method else next(iter(node.args), None)
            if inner is not None:
                yield "dtype" if is_method else "forgotten", node, self._of_text(inner)

    def _of_text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        text = self._text[start:end].decode()
        simple = ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript
        return text if isinstance(node, simple) else f"({text})"

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self._lines[node.lineno - 1] + node.col_offset,
            self._lines[node.end_lineno - 1] + node.end_col_offset,
        )

    def _change(self, kind: str, scope: str, place: ast.AST, new: str) -> Change:
        start, end = self._span(place)
        line = bisect.bisect_right(self._lines, start)
        return Change(
            self._file, kind, line, scope, start, end, self._text[start:end].decode(), new
        )


def _is_negation(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _for_readers(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that only type checkers and readers need."""
    if isinstance(node, ast.keyword) and node.arg == "strict":
        yield node.value  # of zip, which only states what holds
    names = ("annotation", "returns", "decorator_list")
    if isinstance(node, ast.ClassDef):
        names = ("bases", "decorator_list")
    for name in names:
        part = getattr(node, name, None)
        yield from part if isinstance(part, list) else [part] if part is not None else []
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        yield from ast.iter_child_nodes(node)
    if isinstance(node, ast.Assign | ast.AnnAssign) and _is_alias(node):
        yield from [node.value] if node.value is not None else []


def _is_alias(node: ast.Assign | ast.AnnAssign) -> bool:
    """Whether an assignment names a type, such as `Tree = dict | None`."""
    return isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)


def _scope_of(node: ast.AST, scope: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name if scope == "module" else f"{scope}.{node.name}"
    if scope == "module" and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return scope


def _other_constants(value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (str(not value),)
    if isinstance(value, int):
        return (str(value + 1),)
    if isinstance(value, float):
        return ("1.0",) if value == 0 else (f"{value / 2!r}",)
    return ()


def _reads(expression: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(expression))
