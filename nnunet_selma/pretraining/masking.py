"""Block masks for masked inpainting, drawn on the device that trains."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LEAST_RESPONSE = 0.05
"""Least response of a block, in units of the patch's mean, so that blocks without any structure are sometimes masked too."""


def block_shape(edge: int, patch: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Shape of a block in voxels: `edge` along the finest axes, fewer along coarse ones by the ratio of the spacings.

    At most a quarter of the patch along an axis, so that voxels stay visible, and at least one voxel.
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

    Blocks lie on a grid with a random offset, so that every voxel is equally often at a border. For each sample, blocks are drawn until they
    hold the share of voxels to mask, to within half a block.

    Args:
        patch: spatial shape, (z, y, x) or (y, x).
        blocks: the shape of a block, for each sample.
        ratio: share of the voxels to mask, between 0 and 1.
        rng: draws offsets on the CPU, so that no step waits for the device.
        generator: draws the blocks; masks are made on its device.
        response: numbers from 0, (sample, *patch); None: all blocks have the same weight.
        preference: sampling weight of a block = (mean response) ** preference.
        least: drawn blocks whose response is below this, in units of the patch's mean, are not masked.
    """
    masks = []
    for number, block in enumerate(blocks):
        offset = [int(rng.integers(edge)) for edge in block]
        # number of blocks of the shifted grid that overlap the patch
        grid = [-(-(length + start) // edge) for length, edge, start in zip(patch, block, offset, strict=True)]
        keys = torch.rand(grid, generator=generator, device=generator.device)
        sizes = block_sums(torch.ones(tuple(patch), device=keys.device), block, grid, offset)
        allowed = torch.ones_like(keys, dtype=torch.bool)
        if response is not None:
            # the largest log-weights plus Gumbel noise are a draw without replacement in proportion to the weights
            mean = block_sums(response[number], block, grid, offset) / sizes
            mean = mean / mean.mean().clamp(min=1e-12)
            gumbel = -torch.log(-torch.log(keys.clamp(1e-9, 1 - 1e-7)))
            keys, allowed = gumbel + preference * torch.log(mean.clamp(min=_LEAST_RESPONSE)), mean >= least
        order = keys.flatten().argsort(descending=True)
        drawn = sizes.flatten()[order]
        chosen = drawn.cumsum(0) - drawn / 2 <= ratio * torch.Size(patch).numel()
        chosen[:1] = True
        mask = torch.zeros_like(chosen).scatter(0, order, chosen).reshape(grid)
        inside = tuple(slice(start, start + length) for start, length in zip(offset, patch, strict=True))
        masks.append(repeated(mask & allowed, block)[inside])
    return torch.stack(masks).unsqueeze(1)


def repeated(mask: Tensor, factors: Sequence[int]) -> Tensor:
    """A mask of a coarse grid, (…, *grid), with each of its voxels repeated `factors` times along each axis."""
    first = mask.ndim - len(factors)
    for axis, factor in enumerate(factors):
        mask = mask.repeat_interleave(factor, dim=first + axis)
    return mask


def block_sums(values: Tensor, block: Sequence[int], grid: Sequence[int], offset: Sequence[int]) -> Tensor:
    """The sum of values (*patch) over each block of a shifted grid, (*grid); voxels outside the patch count as 0."""
    padding = [
        side
        for length, edge, blocks, start in reversed(list(zip(values.shape, block, grid, offset, strict=True)))
        for side in (start, blocks * edge - start - length)
    ]
    summed = functional.pad(values, padding)
    for axis, (edge, blocks) in enumerate(zip(block, grid, strict=True)):
        summed = summed.reshape(*summed.shape[:axis], blocks, edge, *summed.shape[axis + 1 :]).sum(axis + 1)
    return summed


def fill_mask(patches: Tensor, mask: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """Patches (batch, channel, *patch) with the content of masked voxels replaced.

    Args:
        patches: (batch, channel, *patch).
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
    weight = visible.expand_as(patches)
    count = weight.sum(axes, keepdim=True).clamp(min=1)
    mean = (patches * weight).sum(axes, keepdim=True) / count
    variance = ((patches - mean).square() * weight).sum(axes, keepdim=True) / count
    return mean, variance.sqrt()
