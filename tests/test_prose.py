"""Docstrings begin with their subject, and names say what they name."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "nnunet_selma").rglob("*.py"))
RIDDLES = re.compile(r"(What|Of|Whether|As nnU-Net)\b")


def docstrings(path):
    """Line and text of every string that stands alone in a body: docstrings of modules, classes, functions and fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_begin_with_their_subject(path):
    assert [(line, text.split("\n")[0]) for line, text in docstrings(path) if RIDDLES.match(text.strip())] == []


EMPTY_NAMES = {"own", "one", "found", "wanted", "shown", "said", "of"}


def names(path):
    """Line and name of every variable, argument, function and class that a file defines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_names_say_what_they_name(path):
    assert [(line, name) for line, name in names(path) if name in EMPTY_NAMES] == []
