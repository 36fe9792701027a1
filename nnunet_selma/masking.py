"""Block masks for masked inpainting, drawn on the device that trains."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def block_shape(edge: int, patch: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Shape of a block in voxels: `edge` along the finest axes, fewer along coarse ones by the ratio of the spacings.

    Never above a quarter of the patch along an axis (so that something is left to see), never below one voxel.
    """
    finest = min(spacing)
    return [max(1, min(round(edge * finest / size), length // 4)) for length, size in zip(patch, spacing, strict=True)]


def draw_block_masks(
    count: int,
    patch: Sequence[int],
    *,
    ratio: float,
    edges: Sequence[int],
    spacing: Sequence[float],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Draw `count` masks, bool (count, 1, *patch); True is masked.

    Blocks lie on a grid with a random offset, so that no voxel is a border of a block more often than another; exactly
    `round(ratio × blocks)` of the grid's blocks are masked in each sample (before the grid is cut to the patch). The
    block's edge is drawn per sample from `edges`.

    Args:
        count: number of samples.
        patch: spatial shape, (z, y, x) or (y, x).
        ratio: share of the blocks to mask, between 0 and 1.
        edges: block edges to draw from, voxels along the finest axes.
        spacing: voxel size along each axis, any unit.
        rng: draws edges and offsets; on the CPU, so that no step waits for the device to tell a number.
        generator: draws the blocks; its device is where the masks are made.
    """
    shapes = [block_shape(int(edge), patch, spacing) for edge in rng.choice(edges, size=count)]
    return torch.stack([_draw_one(patch, block, ratio, rng, generator) for block in shapes]).unsqueeze(1)


def _draw_one(
    patch: Sequence[int], block: Sequence[int], ratio: float, rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    """One mask, bool (*patch)."""
    device = generator.device
    # one block more than fits, so that the grid may be shifted by less than a block
    grid = [-(-length // edge) + 1 for length, edge in zip(patch, block, strict=True)]
    blocks = torch.Size(grid).numel()
    order = torch.randperm(blocks, generator=generator, device=device)
    mask = torch.zeros(blocks, dtype=torch.bool, device=device)
    mask[order[: max(1, round(ratio * blocks))]] = True
    mask = mask.reshape(grid)
    for axis, (length, edge) in enumerate(zip(patch, block, strict=True)):
        mask = mask.repeat_interleave(edge, dim=axis).narrow(axis, int(rng.integers(edge)), length)
    return mask


def apply_mask(patches: Tensor, mask: Tensor) -> Tensor:
    """Patches (batch, channel, *patch) with masked voxels set to zero, the mean of a normalised image."""
    return patches.masked_fill(mask, 0.0)
