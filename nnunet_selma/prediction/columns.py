"""Columns of blocks, along which nnU-Net's tiles advance most slowly, and the order in which blocks are predicted."""

from collections.abc import Sequence

from nnunet_selma.morphology.blocks import Box

_LONGEST_TASK = 8
"""Blocks that a worker of a cluster predicts one behind the other: every cut of a column repeats a layer of tiles."""


def columns(blocks: Sequence[Box], axis: int, *, backwards: bool = False) -> list[list[int]]:
    """Numbers of the blocks of each column, one behind the other along an axis of the volume, or from its end."""
    by_place: dict[tuple[int, ...], list[int]] = {}
    for index, box in enumerate(blocks):
        by_place.setdefault(_across(box, axis), []).append(index)
    return [
        sorted(column, key=lambda index: blocks[index][axis].start, reverse=backwards) for column in by_place.values()
    ]


def column_boxes(blocks: Sequence[Box], axis: int) -> dict[int, Box]:
    """Number of each block to the box of its column."""
    boxes: dict[int, Box] = {}
    for column in columns(blocks, axis):
        first, last = blocks[column[0]], blocks[column[-1]]
        z, y, x = (slice(b.start, last[a].stop if a == axis else b.stop) for a, b in enumerate(first))
        boxes |= dict.fromkeys(column, (z, y, x))
    return boxes


def share_of(order: Sequence[int], costs: Sequence[float], share: int, shares: int) -> list[int]:
    """The part of blocks, in their order, that the i-th of n shares predicts: all shares cost about the same and are cut from one piece.

    Args:
        order: numbers of the blocks, column by column.
        costs: cost of each block in that order.
        share: i, from 0.
        shares: n.
    """
    total, before = sum(costs) or 1.0, 0.0
    mine = []
    for index, cost in zip(order, costs, strict=True):
        if min(int((before + cost / 2) / total * shares), shares - 1) == share:
            mine.append(index)
        before += cost
    return mine


def tasks_of(columns_to_do: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Pieces of columns, each for one worker of a cluster."""
    return [
        tuple(column[start : start + _LONGEST_TASK])
        for column in columns_to_do
        for start in range(0, len(column), _LONGEST_TASK)
    ]


def _across(box: Box, axis: int) -> tuple[int, ...]:
    return tuple(bounds.start for a, bounds in enumerate(box) if a != axis)
