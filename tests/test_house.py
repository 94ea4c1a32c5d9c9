"""Rules about the source tree itself that no linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import segcore

PACKAGE = Path(segcore.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYOUT = PACKAGE / "output" / "layout.py"
SOURCES = PACKAGE / "sources"  # knows no output: its `images/` is the folder of a COCO data set

MAX_MODULES_AT_THE_TOP = 10
MAX_MODULE_LINES = 400
MAX_BODY_LINES = 60  # a signature is not counted: that of a command declares its options

DOCUMENT = re.compile(r"(?:\S*/)?(?:edition|latest)\.json")
FOLDERS = {"plans", "runs", "history", "images", "instances", "lease"}
FOLDER_IN_PATH = re.compile(r"/(?:plans|runs|history|images|instances|lease)(?:/\S*)?")


def _docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are docstrings, or other strings that stand alone."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _constants(node: ast.AST) -> Iterator[ast.Constant]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child


def _spelled_paths(tree: ast.AST) -> Iterator[ast.Constant]:
    """Names of files of an output, and of its folders where a path is put together."""
    docstrings = _docstrings(tree)
    for constant in _constants(tree):
        if id(constant) not in docstrings and DOCUMENT.fullmatch(constant.value):
            yield constant
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == "join":
            arguments = (argument for argument in node.args if isinstance(argument, ast.Constant))
            yield from (argument for argument in arguments if argument.value in FOLDERS)
        elif isinstance(node, ast.JoinedStr):
            pieces = (piece for piece in node.values if isinstance(piece, ast.Constant))
            yield from (piece for piece in pieces if FOLDER_IN_PATH.match(str(piece.value)))


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_only_the_layout_spells_paths_of_the_output() -> None:
    spelled = [
        f"{path.relative_to(PACKAGE)}:{constant.lineno}: {constant.value!r}"
        for path in MODULES
        if path != LAYOUT and SOURCES not in path.parents
        for constant in _spelled_paths(ast.parse(path.read_text()))
    ]
    assert spelled == []


def test_paths_of_the_output_are_recognized() -> None:
    code = [
        'storage.read(join(prefix, "edition.json"))',
        'uri = prefix + "/latest.json"',
        'uri = f"{prefix}/edition.json"',
        'join(prefix, "plans", f"{run}.parquet")',
        'uri = f"{prefix}/images/{unit}.parquet"',
        'os.path.join(prefix, "instances")',
    ]
    assert all(list(_spelled_paths(ast.parse(line))) for line in code)
    prose = ['"""Writes edition.json."""', 'f"{uri} names no latest.json."', 'table["images"]']
    assert not any(list(_spelled_paths(ast.parse(line))) for line in prose)


def test_few_modules_lie_at_the_top() -> None:
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES_AT_THE_TOP, modules


def test_modules_are_short_enough_to_read_at_once() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: n for path, n in lines.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_short_enough_to_read_at_once() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": length
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.body[0].lineno + 1) > MAX_BODY_LINES
    }
    assert long == {}
