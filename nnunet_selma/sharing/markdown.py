"""Pieces of Markdown in a model card, as lists of lines."""

from collections.abc import Iterable, Sequence


def in_cell(text: str) -> str:
    """Text that stays in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(map(in_cell, cells))} |" for cells in (head, ["---"] * len(head), *rows)]


def block(*lines: str) -> list[str]:
    """Commands for a shell."""
    return ["```bash", *lines, "```"]
