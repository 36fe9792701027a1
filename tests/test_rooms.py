"""Which room may import which: only rooms that stand before it in the list, so that no two import each other."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "nnunet_selma"
ROOMS = [
    "errors",
    "structures",
    "running",
    "volumes",
    "nnunet",
    "morphology",
    "networks",
    "conversion",
    "pretraining",
    "finetuning",
    "objects",
    "pictures",
    "trainers",
    "ext_trainers",
    "evaluation",
    "prediction",
    "annotation",
    "routing",
    "demo",
    "recipes",
    "cli",
]


MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also within functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name if name in MODULES else node.module for name in names}
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def rooms_of(modules):
    return {name.split(".")[1] for name in modules if name.startswith("nnunet_selma.")} & set(ROOMS)


def test_every_room_is_in_the_list():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else sorted((PACKAGE / room).rglob("*.py"))
    allowed = {*ROOMS[: ROOMS.index(room)], room}
    against = {str(path.relative_to(PACKAGE)): rooms_of(imports(path)) - allowed for path in files}
    assert {path: rooms for path, rooms in against.items() if rooms} == {}


def test_no_module_imports_itself_by_way_of_others():
    ahead = {name: imports(path) & set(MODULES) - {name, "nnunet_selma"} for name, path in MODULES.items()}
    while free := {name for name, needed in ahead.items() if not needed & set(ahead)}:
        ahead = {name: needed for name, needed in ahead.items() if name not in free}
    assert sorted(ahead) == []


def test_benchmarks_import_nothing_from_the_tests():
    for path in (REPOSITORY / "benchmarks").rglob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "tests"}, path
