"""The order of slices, from their file names alone; no file is opened.

A name may hold several numbers: of the channel, of the slice, of a clock. Each is compared in all names. The slices are numbered by one that
differs everywhere, if possible in equal steps, if possible behind a word such as Z or slice; the last of these, if they give the same order.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from itertools import pairwise, takewhile

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.progressions import Progression, progression

_ENDING = re.compile(r"(\.ome)?\.[a-z]\w*$", re.IGNORECASE)
_SIGN = r"(?:(?<!\d)[-+−](?=\d))?"
_WHOLE = re.compile(rf"({_SIGN}\d+)")
_DECIMAL = re.compile(rf"({_SIGN}(?:(?<!\d[.,])\d+[.,]\d+(?![.,]?\d)|\d+))")
"""A number with a decimal point; the points of 2024.11.03 are none."""
_WORD_START = r"(?:^|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))"
_SLICE = re.compile(
    _WORD_START + r"(?i:z|slice|plane|section|s|sl|sec)(?i:[ _-]?(?:no|number|index|pos|position))?[ _.=#(-]*$"
)
"""Words before the number of a slice; the short ones are `s` for section or slice."""
_BELOW_ZERO = re.compile(rf"(^|_|{_WORD_START}(?i:[xyz]|[xyz]?pos|position|depth|offset|stage))$")
"""Text before a hyphen that is a minus sign, where all names have the hyphen."""


def most_interpolated(count: int) -> int:
    """Number of slices that may be interpolated in a stack of this many: 2 %, but one in any stack where three others are there."""
    return 0 if count < 4 else max(1, count // 50)


@dataclass(frozen=True)
class SliceNumbers:
    """Slice numbers that are read from file names."""

    numbers: tuple[Decimal, ...]
    """The slice number of each name; all are different."""
    label: str
    """The text around the number, `Z####`, or the option that chose it."""

    @cached_property
    def progression(self) -> Progression:
        """The numbers in order."""
        return progression(sorted(self.numbers))

    @property
    def order(self) -> str:
        """The rule of the order, for a sentence: ordered by Z####, 0 to 39, step 1."""
        numbers, step = self.progression.numbers, self.progression.step
        steps = "uneven steps" if step is None else f"step {step:f}"
        return f"ordered by {self.label}, {numbers[0]} to {numbers[-1]}, {steps}"


def slice_numbers(names: Sequence[str], pattern: str | None = None) -> SliceNumbers:
    """Read the slice number in each file name.

    Args:
        names: file names, in any order.
        pattern: a regular expression; its first parenthesis, or all of it, is the number.

    Raises:
        SelmaError: a name without a number, names that are built differently, two slices with one number, several numbers that would
            order the slices differently, or a pattern that does not fit.
    """
    if pattern is not None:
        return _by_pattern(names, pattern)
    if len(names) == 1:
        return SliceNumbers((Decimal(0),), "its single name")
    stems = _without_double_hyphens([_ENDING.sub("", name) for name in names])
    columns, number = _columns(stems, _DECIMAL), _DECIMAL
    if any(re.search(r"\d[.,]\d", stem) for stem in stems):
        whole = _columns(stems, _WHOLE)
        if _best_rank(whole) < _best_rank(columns):  # the points separate numbers
            columns, number = whole, _WHOLE
    templates = [number.sub("#", stem) for stem in stems]
    _check_strangers(names, templates)
    if not columns:
        raise _built_differently(names, templates)
    column = _slice_column(columns, names)
    if len(set(templates)) > 1:
        _check_alternating(column, names, templates)
    return SliceNumbers(column.numbers, column.label)


def _without_double_hyphens(stems: Sequence[str]) -> list[str]:
    """The names with the hyphen that separates replaced, where others are minus signs: pos-3 and pos--3."""
    if len({"--" in stem for stem in stems}) == 1:
        return list(stems)
    return [re.sub(r"(?<![-\d])-(?=-?\d)", "_", stem) for stem in stems]


def _by_pattern(names: Sequence[str], pattern: str) -> SliceNumbers:
    """Slice numbers by the regular expression of a user."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SelmaError(f"slice pattern {pattern}: is no regular expression ({error})") from error
    numbers: dict[Decimal, str] = {}
    for name in names:
        match = expression.search(name)
        text = match and match[1 if expression.groups else 0]
        if not text:
            raise SelmaError(f"{name}: does not match the slice pattern {pattern}; change it, or move the file away")
        try:
            number = _value(text)
        except InvalidOperation as error:
            raise SelmaError(
                f"{name}: the slice pattern {pattern} gives {text!r}, which is no number; put its digits in parentheses"
            ) from error
        if number in numbers:
            raise SelmaError(
                f"{numbers[number]} and {name} have the same slice number {number} by the slice pattern {pattern}; "
                "change it, or keep one channel and one copy in the folder"
            )
        numbers[number] = name
    return SliceNumbers(tuple(numbers), "the slice pattern")


def _value(text: str) -> Decimal:
    value = Decimal(text.replace(",", ".").replace("−", "-"))
    if not value.is_finite():
        raise InvalidOperation
    return value


@dataclass(frozen=True)
class _Column:
    """A number that all names have at the same place."""

    before: str
    """Text before the number, as far as it is the same in all names."""
    texts: tuple[str, ...]
    """The number of each name as it is written."""

    @cached_property
    def numbers(self) -> tuple[Decimal, ...]:
        return tuple(map(_value, self.texts))

    @cached_property
    def rank(self) -> int:
        """Fitness to number slices: 0 in equal steps, 1 with a few gaps, 2 with many, 3 uneven, 4 if numbers occur twice."""
        if len(set(self.numbers)) < len(self.numbers):
            return 4
        row = progression(sorted(self.numbers))
        if row.step is None or row.missing_count > len(self.numbers):
            return 3
        if not row.missing_count:
            return 0
        return 1 if row.missing_count <= most_interpolated(len(self.numbers) + row.missing_count) else 2

    @property
    def follows_word(self) -> bool:
        """True for a number behind z, slice, plane or section."""
        return _SLICE.search(self.before) is not None

    @property
    def word(self) -> str:
        """Letters before the number, with what separates them from it."""
        letters = re.search(r"[A-Za-z]+[^A-Za-z]*$", self.before)
        return letters[0] if letters else ""

    @property
    def example(self) -> str:
        """The number in the first name, with the letters before it."""
        return self.word + self.texts[0]

    @property
    def label(self) -> str:
        """The letters before the number, and # for its digits: `Z####`."""
        shapes = {re.sub(r"\d", "#", text) for text in self.texts}
        return self.word + (shapes.pop() if len(shapes) == 1 else "#")

    def rises_with(self, other: "_Column", *, strictly: bool = True) -> bool:
        """True if both columns put the names in the same order; if not strictly, numbers may stay while the other's rise."""
        ordered = [number for _, number in sorted(zip(other.numbers, self.numbers, strict=True))]
        return all(a < b or (a == b and not strictly) for a, b in pairwise(ordered))


def _columns(stems: Sequence[str], number: re.Pattern[str]) -> list[_Column]:
    """The numbers before which, from the left or from the right of the name, all names have the same texts."""
    split = [number.split(stem) for stem in stems]  # text, number, text, …, text
    left = list(_equal_beginning(split))
    right = list(_equal_beginning([parts[::-1] for parts in split]))
    if len(left) == len(right) == min(map(len, split)) // 2:
        right = []  # the names differ in numbers only
    places = [*left, *(-1 - place for place in reversed(right))]
    return [_column([parts[place - 1] for parts in split], [parts[place] for parts in split]) for place in places]


def _equal_beginning(split: Sequence[Sequence[str]]) -> Iterator[int]:
    """Places of the numbers up to the first text that is not the same in all names."""
    for place in range(0, min(map(len, split)) - 1, 2):
        if len({parts[place] for parts in split}) > 1:
            return
        yield place + 1


def _column(befores: Sequence[str], texts: Sequence[str]) -> _Column:
    """A column, in which a hyphen before every number is a minus sign only where positions stand, and without zeros to fill."""
    endings = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, befores), strict=False))
    before = "".join(letters[0] for letters in endings)[::-1]
    if all(text[0] in "-−" for text in texts):
        filled = any(re.match(r".0(\d|$)", text) for text in texts)
        if filled or not _BELOW_ZERO.search(before):
            return _Column(f"{before}-", tuple(text[1:] for text in texts))
    return _Column(before, tuple(texts))


def _best_rank(columns: Sequence[_Column]) -> int:
    return min((column.rank for column in columns), default=4)


def _slice_column(columns: Sequence[_Column], names: Sequence[str]) -> _Column:
    """The column that numbers the slices; raises `SelmaError` where two could, in different orders, or none."""
    varying = [column for column in columns if len(set(column.numbers)) > 1]
    unique = [column for column in varying if column.rank < 4]
    if not unique:
        raise _repeated(varying, columns, names)
    # a gap behind Z is a gap, though a counter beside it has none
    ranks = [0 if column.follows_word and column.rank == 1 else column.rank for column in unique]
    best = [column for column, rank in zip(unique, ranks, strict=True) if rank == min(ranks)]
    behind_word = [column for column in best if column.follows_word]
    chosen = (behind_word or best)[-1]
    equals = behind_word or [*best, *(column for column in varying if column.follows_word)]
    rivals = [column for column in equals if not column.rises_with(chosen)]
    if chosen.rank == 3:  # uneven steps prove nothing
        rivals += [column for column in varying if not column.rises_with(chosen, strictly=False)]
    if rivals:
        raise SelmaError(
            f"{chosen.example} and {rivals[-1].example} in the name {names[0]} would order the slices differently; name the files "
            "by the number of the slice alone",
            option=r"choose the slice number with --slice-pattern 'Z(\d+)'",
        )
    return chosen


def _repeated(varying: Sequence[_Column], columns: Sequence[_Column], names: Sequence[str]) -> SelmaError:
    """The error for names in which no number is different everywhere."""
    if len(varying) > 1:
        *_, first, second = varying
        return SelmaError(
            f"neither {first.example} nor {second.example} in the name {names[0]} numbers the slices, both occur several times; "
            "keep one animal, one channel and one copy in the folder"
        )
    numbers = (varying or columns)[-1].numbers
    twice = next(number for number, count in Counter(numbers).items() if count > 1)
    one_name, other_name = [name for name, number in zip(names, numbers, strict=True) if number == twice][:2]
    return SelmaError(
        f"{one_name} and {other_name} have the same slice number {twice}: keep one channel and one copy in the folder"
    )


def _check_strangers(names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise `SelmaError` for a name without a number, and for a single name unlike most others."""
    counts = Counter(templates)
    usual, count = counts.most_common(1)[0]
    for name, template in zip(names, templates, strict=True):
        if "#" not in template:
            raise SelmaError(f"{name}: the file name has no slice number; move it out of the folder or number it")
        if counts[template] == 1 and 2 * count > len(names):
            raise SelmaError(f"{name}: is not named like the other slices ({usual}); move it out of the folder")


def _check_alternating(column: _Column, names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise `SelmaError` if names differ in more than numbers, unless they number one stack without doubt.

    That is so for equal steps behind a word such as Z, and where the texts alternate, as those of left and right light sheets.
    """
    texts = [template for _, template in sorted(zip(column.numbers, templates, strict=True))]
    changes = sum(a != b for a, b in pairwise(texts))
    if column.rank == 0 and len(names) > 3 and (column.follows_word or changes >= len(set(texts))):
        return
    raise _built_differently(names, templates)


def _built_differently(names: Sequence[str], templates: Sequence[str]) -> SelmaError:
    other = next(name for name, template in zip(names, templates, strict=True) if template != templates[0])
    return SelmaError(
        f"{names[0]} and {other} are named differently; keep the slices of one stack in the folder",
        option=r"choose the slice number with --slice-pattern 'Z(\d+)'",
    )
