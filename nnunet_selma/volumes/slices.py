"""The order of numbered slices, from their file names alone; no file is opened."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from nnunet_selma.errors import SelmaError

_DIGITS = re.compile(r"\d+")


def slice_numbers(names: Sequence[str]) -> list[int]:
    """The slice number in each file name: of the groups of digits that differ between the names, the last one.

    `C01_Z9.tif, C01_Z10.tif` give 9, 10, and so do `Z9_C01.ome.tif, Z10_C01.ome.tif`: a group that is the same in every
    name is a channel, a date or a magnification. Numbers are compared as numbers, because SELMA3D's stacks are not all padded with zeros.

    Raises:
        SelmaError: a name without a number, names that are built differently, or two slices with one number.
    """
    if len(names) == 1:
        return [0]
    template = Counter(_DIGITS.sub("#", name) for name in names).most_common(1)[0][0]
    for name in names:
        if not _DIGITS.search(name):
            raise SelmaError(f"{name}: the file name has no slice number; move it out of the folder or number it")
        if _DIGITS.sub("#", name) != template:
            raise SelmaError(f"{name}: is not named like the other slices ({template}); move it out of the folder")
    columns = list(zip(*([int(group) for group in _DIGITS.findall(name)] for name in names), strict=True))
    varying = [column for column in columns if len(set(column)) > 1]
    unique = [column for column in varying if len(set(column)) == len(names)]
    if unique:
        return list(unique[-1])
    numbers = varying[-1] if varying else columns[-1]
    twice = next(number for number, count in Counter(numbers).items() if count > 1)
    first, second = [name for name, number in zip(names, numbers, strict=True) if number == twice][:2]
    raise SelmaError(
        f"{first} and {second} have the same slice number {twice}: keep one channel and one copy in the folder"
    )


def missing_numbers(numbers: Sequence[int]) -> list[int]:
    """The numbers missing from a sorted, regular row.

    The step is the most frequent one (some stacks count in µm); steps that rounding makes uneven are no gaps.

    Raises:
        SelmaError: more numbers are missing than given: they count something other than slices, or a file belongs to another stack.
    """
    steps = [b - a for a, b in pairwise(numbers)]
    if not steps:
        return []
    step = min(Counter(steps).items(), key=lambda item: (-item[1], item[0]))[0]
    gaps = [(a, round((b - a) / step)) for a, b in pairwise(numbers) if b - a >= 2 * step]
    if sum(count - 1 for _, count in gaps) > len(numbers):
        before, _ = max(gaps, key=lambda gap: gap[1])
        raise SelmaError(
            f"the slice numbers jump after {before}; a file of another stack may lie in the folder, move it out"
        )
    return [a + i * step for a, count in gaps for i in range(1, count)]
