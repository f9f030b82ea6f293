"""The limits that keep this code readable, held by counting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = [p for d in ("runnel", "benchmarks", "examples") for p in sorted((ROOT / d).rglob("*.py"))]
PACKAGE = [p for p in CODE if p.is_relative_to(ROOT / "runnel")]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
MAX_ATTRIBUTES = 12
MAX_INHERITANCE = 2

Function = ast.FunctionDef | ast.AsyncFunctionDef


def none_of(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def definitions(path: Path) -> list[Function | ast.ClassDef]:
    return [n for n in ast.walk(tree(path)) if isinstance(n, Function | ast.ClassDef)]


def functions(path: Path) -> Iterator[Function]:
    return (n for n in definitions(path) if isinstance(n, Function))


def classes(path: Path) -> Iterator[ast.ClassDef]:
    return (n for n in definitions(path) if isinstance(n, ast.ClassDef))


def names_in(expression: ast.expr) -> list[str]:
    """``dataclass`` for ``@dataclasses.dataclass(frozen=True)``; the outermost names only."""
    if isinstance(expression, ast.Call | ast.Subscript):
        return names_in(expression.func if isinstance(expression, ast.Call) else expression.value)
    if isinstance(expression, ast.Attribute):
        return [expression.attr]
    return [expression.id] if isinstance(expression, ast.Name) else []


def length_without_docstring(function: Function) -> int:
    first, last = function.body[0], function.end_lineno or function.lineno
    length = last - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def parameters(function: Function, *, is_method: bool) -> int:
    arguments = function.args
    count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    is_static = any("staticmethod" in names_in(d) for d in function.decorator_list)
    return count - (is_method and not is_static)


def instance_attributes(definition: ast.ClassDef) -> set[str]:
    """What methods store on ``self``; fields of a dataclass that is not frozen count too."""
    stored = {
        node.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    for decorator in definition.decorator_list:
        frozen = isinstance(decorator, ast.Call) and any(
            k.arg == "frozen" and ast.unparse(k.value) == "True" for k in decorator.keywords
        )
        if "dataclass" in names_in(decorator) and not frozen:
            stored |= {
                n.target.id
                for n in definition.body
                if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
    return stored


def undocumented(path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods that have no docstring."""
    if ast.get_docstring(tree(path)) is None:
        yield f"{place(path, tree(path))} module"
    pending: list[ast.AST] = [tree(path)]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                is_overload = any("overload" in names_in(d) for d in node.decorator_list)
                if ast.get_docstring(node) is None and not is_overload:
                    yield f"{place(path, node)} {node.name}"
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                pending.append(node)


def longest_chain(name: str, bases: dict[str, list[str]]) -> int:
    parents = [longest_chain(b, bases) for b in bases.get(name, []) if b in bases and b != name]
    return 1 + max(parents, default=0)


def test_there_is_code_to_measure() -> None:
    assert len(PACKAGE) > 10


def test_files_stay_short() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in CODE}
    none_of(
        [
            f"{p.relative_to(ROOT)}: {n} lines, at most {MAX_FILE_LINES}"
            for p, n in lengths.items()
            if n > MAX_FILE_LINES
        ]
    )


def test_functions_stay_short() -> None:
    lengths = [(p, f, length_without_docstring(f)) for p in CODE for f in functions(p)]
    none_of(
        [
            f"{place(p, f)} {f.name}: {n} lines without its docstring, at most {MAX_FUNCTION_LINES}"
            for p, f, n in lengths
            if n > MAX_FUNCTION_LINES
        ]
    )


def test_functions_take_few_parameters() -> None:
    methods = {
        id(f) for p in PACKAGE for c in classes(p) for f in c.body if isinstance(f, Function)
    }
    counts = [
        (p, f, parameters(f, is_method=id(f) in methods)) for p in PACKAGE for f in functions(p)
    ]
    none_of(
        [
            f"{place(p, f)} {f.name}: {n} parameters, at most {MAX_PARAMETERS}"
            for p, f, n in counts
            if n > MAX_PARAMETERS
        ]
    )


def test_objects_hold_few_attributes() -> None:
    held = [(p, c, instance_attributes(c)) for p in PACKAGE for c in classes(p)]
    none_of(
        [
            f"{place(p, c)} {c.name}: {len(names)} attributes, at most {MAX_ATTRIBUTES}"
            for p, c, names in held
            if len(names) > MAX_ATTRIBUTES
        ]
    )


def test_inheritance_stays_flat() -> None:
    bases = {c.name: [n for b in c.bases for n in names_in(b)] for p in PACKAGE for c in classes(p)}
    none_of(
        [
            f"{name}: a chain of {longest_chain(name, bases)} classes of ours, at most {MAX_INHERITANCE}"
            for name in bases
            if longest_chain(name, bases) > MAX_INHERITANCE
        ]
    )


def test_everything_public_says_what_it_gives() -> None:
    none_of([line for path in PACKAGE for line in undocumented(path)])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, /, b, *args, c, **more): ...", 3),
        ("def f(): ...", 0),
    ],
)
def test_parameters_are_counted_without_stars(source: str, expected: int) -> None:
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert parameters(function, is_method=False) == expected


def test_attributes_of_mutable_dataclasses_count_and_of_values_do_not() -> None:
    def attributes(decorator: str) -> set[str]:
        definition = ast.parse(f"{decorator}\nclass A:\n    x: int\n    y: int\n").body[0]
        assert isinstance(definition, ast.ClassDef)
        return instance_attributes(definition)

    assert attributes("@dataclass(slots=True)") == {"x", "y"}
    assert attributes("@dataclass(frozen=True)") == set()
