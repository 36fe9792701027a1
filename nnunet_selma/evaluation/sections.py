"""Sections of a page as data (a heading, tables, sentences, lists), and the same as Markdown, LaTeX or HTML."""

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first `names` columns are names, the rest numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    groups: Sequence[tuple[str, int]] = ()
    """Common heads of columns of numbers, from left to right, and the number of columns of each."""
    notes: Sequence[str] = ()
    """Sentences below the table."""
    mean_row: bool = False
    """True if the last row is the mean of the others; HTML sets it in bold."""
    best: Collection[tuple[int, int]] = ()
    """Row and column, from 0, of the best value of a row; HTML colours these cells."""

    @property
    def full_head(self) -> list[str]:
        """Heads of all columns, each with its common head before it."""
        common = [f"{group}: " for group, width in self.groups for _ in range(width)]
        common = [""] * self.names + (common or [""] * (len(self.head) - self.names))
        return [group + head for group, head in zip(common, self.head, strict=True)]


Part: TypeAlias = Table | str | list[str]
"""A table, a paragraph (text) or a list of points (a list of text)."""


@dataclass(frozen=True)
class PageSection:
    """A part of a page."""

    title: str
    parts: Sequence[Part]
    """Content, from top to bottom."""
    level: int = 2
    """Level of the heading in Markdown: 1 for the title of the page."""


def as_markdown(sections: Sequence[PageSection]) -> str:
    """The sections in Markdown."""
    blocks = []
    for section in sections:
        blocks.append(f"{'#' * section.level} {section.title}")
        for part in section.parts:
            match part:
                case Table():
                    blocks += [markdown_table(part), *part.notes]
                case str():
                    blocks.append(part)
                case _:
                    blocks.append("\n".join(f"- {point}" for point in part))
    return "\n\n".join(blocks) + "\n"


def as_html(sections: Sequence[PageSection]) -> str:
    """The sections in HTML; headings are one level lower than in Markdown, because the page around them has headings too."""
    blocks = []
    for section in sections:
        level = section.level + 1
        blocks.append(f"<h{level}>{html.escape(section.title)}</h{level}>")
        for part in section.parts:
            match part:
                case Table():
                    blocks += [html_table(part), *(f"<p>{html.escape(note)}</p>" for note in part.notes)]
                case str():
                    blocks.append(f"<p>{html.escape(part)}</p>")
                case _:
                    blocks.append(html_list(part))
    return "\n".join(blocks)


def as_latex(sections: Sequence[PageSection]) -> str:
    """The sections that have tables, in LaTeX with booktabs; headings, sentences and notes are comments, lists are left out."""
    blocks = []
    for section in sections:
        if not any(isinstance(part, Table) for part in section.parts):
            continue
        parts = []
        for part in section.parts:
            match part:
                case Table():
                    parts.append("\n".join([latex_table(part), *(f"% {note}" for note in part.notes)]))
                case str():
                    parts.append(f"% {part}")
        blocks.append(f"% {section.title}\n" + "\n\n".join(parts))
    return "\n\n".join(blocks) + "\n"


def markdown_table(table: Table) -> str:
    """The table in Markdown, without its notes."""
    rule = ["---"] * table.names + ["---:"] * (len(table.head) - table.names)
    lines = [table.full_head, rule, *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def html_table(table: Table) -> str:
    """The table in HTML, without its notes; a page gives the classes `name`, `mean` and `best` their looks."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.full_head)
    lines = [f"<tr>{head}</tr>"]
    for number, row in enumerate(table.rows):
        cells = []
        for column, cell in enumerate(row):
            look = " class=name" if column < table.names else " class=best" if (number, column) in table.best else ""
            cells.append(f"<td{look}>{html.escape(cell)}</td>")
        mean = table.mean_row and number == len(table.rows) - 1
        lines.append(f"<tr{' class=mean' if mean else ''}>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def html_list(points: Sequence[str]) -> str:
    """A list of points in HTML."""
    return f"<ul>{''.join(f'<li>{html.escape(point)}</li>' for point in points)}</ul>"


def latex_table(table: Table) -> str:
    """The table in LaTeX with booktabs, without its notes."""
    numbers = len(table.head) - table.names
    lines = [rf"\begin{{tabular}}{{{'l' * table.names}{'c' * numbers}}}", r"\toprule"]
    if table.groups:
        heads = [rf"\multicolumn{{{width}}}{{c}}{{{_escaped(group)}}}" for group, width in table.groups]
        ends = accumulate([table.names, *(width for _, width in table.groups)])
        lines += [" & ".join([""] * table.names + heads).lstrip() + r" \\"]
        lines += [" ".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in pairwise(ends))]
    body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in (table.head, *table.rows)]
    return "\n".join([*lines, body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"])


_LATEX = {
    **{character: "\\" + character for character in "&%_#${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "β": r"$\beta$",
    "β0": r"$\beta_0$",
    "β1": r"$\beta_1$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
}
_SPECIAL = re.compile("|".join(re.escape(text) for text in sorted(_LATEX, key=len, reverse=True)))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)
