"""Block masks for masked inpainting, drawn on the device that trains."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LEAST_RESPONSE = 0.05
"""Least response of a block, in units of the patch's mean: blocks without any structure are still masked now and then."""


def block_shape(edge: int, patch: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Shape of a block in voxels: `edge` along the finest axes, fewer along coarse ones by the ratio of the spacings.

    Never above a quarter of the patch along an axis (so that something is left to see), never below one voxel.
    """
    finest = min(spacing)
    return [max(1, min(round(edge * finest / size), length // 4)) for length, size in zip(patch, spacing, strict=True)]


def draw_block_masks(
    patch: Sequence[int],
    blocks: Sequence[Sequence[int]],
    *,
    ratio: float,
    rng: np.random.Generator,
    generator: torch.Generator,
    response: Tensor | None = None,
    preference: float = 1.0,
    least: float = 0.0,
) -> Tensor:
    """A mask for each entry of `blocks`, bool (sample, 1, *patch); True is masked.

    Blocks lie on a grid with a random offset, so that no voxel is a border of a block more often than another; for each sample they are
    drawn until they hold the share of voxels that is to be masked, to within half a block.

    Args:
        patch: spatial shape, (z, y, x) or (y, x).
        blocks: the shape of a block, for each sample.
        ratio: share of the voxels to mask, between 0 and 1.
        rng: draws offsets; on the CPU, so that no step waits for the device to tell a number.
        generator: draws the blocks; its device is where the masks are made.
        response: numbers from 0, (sample, *patch); None draws all blocks alike.
        preference: sampling weight of a block = (mean response) ** preference.
        least: blocks whose response is below this, in units of the patch's mean, are not masked, though drawn.
    """
    masks = []
    for number, block in enumerate(blocks):
        offset = [int(rng.integers(edge)) for edge in block]
        # of the shifted grid, the blocks that lie in the patch, wholly or in part
        grid = [-(-(length + start) // edge) for length, edge, start in zip(patch, block, offset, strict=True)]
        keys = torch.rand(grid, generator=generator, device=generator.device)
        sizes = block_sums(torch.ones(tuple(patch), device=keys.device), block, grid, offset)
        allowed = torch.ones_like(keys, dtype=torch.bool)
        if response is not None:
            # taking the greatest of log-weights with Gumbel noise draws without replacement in proportion to the weights
            found = block_sums(response[number], block, grid, offset) / sizes
            found = found / found.mean().clamp(min=1e-12)
            gumbel = -torch.log(-torch.log(keys.clamp(1e-9, 1 - 1e-7)))
            keys, allowed = gumbel + preference * torch.log(found.clamp(min=_LEAST_RESPONSE)), found >= least
        order = keys.flatten().argsort(descending=True)
        drawn = sizes.flatten()[order]
        chosen = drawn.cumsum(0) - drawn / 2 <= ratio * torch.Size(patch).numel()
        chosen[:1] = True
        mask = torch.zeros_like(chosen).scatter(0, order, chosen).reshape(grid)
        masks.append(_voxels(mask & allowed, block, offset, patch))
    return torch.stack(masks).unsqueeze(1)


def repeated(mask: Tensor, factors: Sequence[int]) -> Tensor:
    """A mask of a coarse grid, (…, *grid), with so many voxels along each axis for one of the grid."""
    first = mask.ndim - len(factors)
    for axis, factor in enumerate(factors):
        mask = mask.repeat_interleave(factor, dim=first + axis)
    return mask


def _voxels(mask: Tensor, block: Sequence[int], offset: Sequence[int], patch: Sequence[int]) -> Tensor:
    """A mask of blocks, bool (*grid), as one of voxels, bool (*patch)."""
    for axis, (length, edge, start) in enumerate(zip(patch, block, offset, strict=True)):
        mask = mask.repeat_interleave(edge, dim=axis).narrow(axis, start, length)
    return mask


def block_sums(values: Tensor, block: Sequence[int], grid: Sequence[int], offset: Sequence[int]) -> Tensor:
    """The sum of values (*patch) over what lies in the patch of each block of a shifted grid, (*grid)."""
    padding = [
        side
        for length, edge, cells, start in reversed(list(zip(values.shape, block, grid, offset, strict=True)))
        for side in (start, cells * edge - start - length)
    ]
    summed = functional.pad(values, padding)
    for axis, (edge, cells) in enumerate(zip(block, grid, strict=True)):
        summed = summed.reshape(*summed.shape[:axis], cells, edge, *summed.shape[axis + 1 :]).sum(axis + 1)
    return summed


def fill_mask(patches: Tensor, mask: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """Patches (batch, channel, *patch) with something else in masked voxels.

    Args:
        patches: what is masked.
        mask: bool (batch, 1, *patch); True is masked.
        fill: "zeros", "mean" of the patch's visible voxels, or "noise" of their mean and standard deviation.
        generator: draws the noise.
    """
    if fill == "zeros":
        return patches.masked_fill(mask, 0.0)
    mean, deviation = moments(patches, ~mask)
    filled = mean.expand_as(patches)
    if fill == "noise":
        noise = torch.randn(patches.shape, generator=generator, device=generator.device)
        filled = filled + deviation * noise
    return torch.where(mask, filled, patches)


def moments(patches: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the visible voxels of each patch and channel, (batch, channel, 1, …).

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
    """
    axes = tuple(range(2, patches.ndim))
    shown = visible.expand_as(patches)
    count = shown.sum(axes, keepdim=True).clamp(min=1)
    mean = (patches * shown).sum(axes, keepdim=True) / count
    variance = ((patches - mean).square() * shown).sum(axes, keepdim=True) / count
    return mean, variance.sqrt()
