"""Docstrings begin with their subject."""

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
