"""The shape of the tree: links for readers, small files, small functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKS = ("models", "workers", "cli")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
DRAWERS = {"base", "common", "core", "helpers", "misc", "shared", "util", "utils"}


def python_files(*folders: str) -> Iterator[Path]:
    """Every Python file below these folders of the tree; links are not followed."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The absolute module names that a file imports, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node.lineno


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """The functions of a file, each with its number of lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("name", LINKS)
def test_a_top_level_link_leads_into_the_package_relatively(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("inturn") / name
    assert link.is_dir()


def test_nothing_is_imported_through_a_link() -> None:
    through_links = [
        f"{place(path, line)} imports {module}"
        for path in python_files("inturn", "ops", "examples", "tests")
        for module, line in imported_names(ast.parse(path.read_text()))
        if module.partition(".")[0] in LINKS
    ]
    assert through_links == []


def test_no_file_of_the_product_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in python_files("inturn")}
    too_long = [place(path, lines) for path, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE]
    assert too_long == []


def test_no_function_of_the_product_is_too_long() -> None:
    too_long = [
        f"{place(path, function.lineno)} {function.name} has {lines} lines"
        for path in python_files("inturn")
        for function, lines in functions(ast.parse(path.read_text()))
        if lines > MOST_LINES_OF_A_FUNCTION
    ]
    assert too_long == []


def test_no_file_of_the_product_is_a_drawer() -> None:
    drawers = [
        place(path, 1)
        for path in python_files("inturn")
        if DRAWERS.intersection(path.relative_to(ROOT).with_suffix("").parts) or path.name.startswith("base_")
    ]
    assert drawers == []
