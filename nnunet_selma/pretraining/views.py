"""Random views of patches, computed on the device that trains: crops, mirrors, contrast, blur, noise."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_selma.nnunet.pretext_settings import ViewsSettings

_RADIUS = 3
"""Radius of a Gaussian kernel, in standard deviations."""


def draw(count: int, low_high: Sequence[float], generator: torch.Generator) -> Tensor:
    """Uniform random numbers between the two bounds, (count,), on the generator's device."""
    low, high = low_high
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low


def view(
    patches: Tensor,
    settings: ViewsSettings,
    spacing: Sequence[float],
    generator: torch.Generator,
    *,
    crop: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """A view of each patch of (batch, channel, *patch), in shape (batch, channel, *size).

    Args:
        patches: normalised intensities.
        settings: range of each change.
        spacing: voxel size along the axes; coarse axes are blurred by fewer voxels.
        generator: draws all random numbers.
        crop: edge of the view as a share of the patch's, lowest and highest; the settings' by default.
        size: shape of the view; the patch's by default.
    """
    cropped = crop_views(
        patches, settings.crop if crop is None else crop, size or patches.shape[2:], generator, mirror=settings.mirror
    )
    count = len(patches)
    changed = change_contrast(
        cropped, draw(count, settings.gamma, generator), draw(count, settings.contrast, generator)
    )
    blurred = gaussian_blur(changed, draw(count, settings.blur, generator), spacing, settings.blur[1])
    axes = tuple(range(1, patches.ndim))
    level = _like(draw(count, (0.0, settings.noise), generator), blurred) * blurred.std(axes, keepdim=True)
    noise = torch.randn(blurred.shape, generator=generator, device=generator.device)
    return blurred + level * noise


def crop_views(
    patches: Tensor, share: Sequence[float], size: Sequence[int], generator: torch.Generator, *, mirror: bool
) -> Tensor:
    """A random box of each patch (batch, channel, *patch), mirrored at random, resized to (batch, channel, *size)."""
    count, axes = len(patches), patches.ndim - 2
    scale = draw(count, share, generator)
    shift = draw(count * axes, (-1.0, 1.0), generator).reshape(axes, count) * (1 - scale)
    signs = torch.randint(0, 2, (axes, count), generator=generator, device=generator.device) * 2 - 1
    places = []
    for axis, length in enumerate(size):
        # centres of the view's voxels, in a view, then in a patch, whose borders are at -1 and 1
        centres = torch.arange(length, device=generator.device) * (2 / length) - (1 - 1 / length)
        moved = (scale * signs[axis] if mirror else scale)[:, None] * centres + shift[axis][:, None]
        places.append(moved.reshape(count, *(length if n == axis else 1 for n in range(axes))).expand(count, *size))
    grid = torch.stack(places[::-1], dim=-1)  # grid_sample counts axes from the last
    return functional.grid_sample(patches.float(), grid, padding_mode="border", align_corners=False)


def change_contrast(patches: Tensor, gamma: Tensor, contrast: Tensor) -> Tensor:
    """Patches (batch, channel, *patch) with intensities raised to `gamma` between their extremes, then scaled by `contrast` about their mean.

    Both are (batch,).
    """
    axes = tuple(range(1, patches.ndim))
    low, high = patches.amin(axes, keepdim=True), patches.amax(axes, keepdim=True)
    span = (high - low).clamp(min=1e-6)
    bent = ((patches - low) / span).clamp(0, 1) ** _like(gamma, patches) * span + low
    mean = bent.mean(axes, keepdim=True)
    return (bent - mean) * _like(contrast, patches) + mean


def gaussian_blur(patches: Tensor, sigma: Tensor, spacing: Sequence[float], largest: float) -> Tensor:
    """Patches (batch, channel, *patch), each smoothed by a Gaussian.

    Args:
        patches: (batch, channel, *patch); the last voxels are repeated beyond the border.
        sigma: standard deviation of each patch's Gaussian along the finest axes, voxels, (batch,); 0 changes nothing.
        spacing: voxel size along the axes; along coarse ones the Gaussian is narrower in voxels.
        largest: upper bound of `sigma`; it sets the size of the kernel, so that the host need not wait for the device.
    """
    with in_full_precision(patches.device):
        for axis, size in enumerate(spacing):
            ratio = min(spacing) / size
            matrices = gaussian_matrices(patches.shape[2 + axis], sigma * ratio, largest * ratio)
            patches = along(patches, matrices, 2 + axis)
    return patches


def gaussian_matrices(length: int, sigma: Tensor, largest: float) -> Tensor:
    """Matrices (batch, length, length) that smooth a line of voxels, whose last voxels are repeated beyond its ends.

    Args:
        length: voxels of the line.
        sigma: standard deviation of each Gaussian, voxels, (batch,).
        largest: upper bound of `sigma`.
    """
    radius = min(max(1, round(_RADIUS * largest)), length - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None].clamp(min=1e-3)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # (batch, offset)
    return torch.einsum("bo,vor->bvr", weights, _neighbours(length, radius, sigma.device).to(weights.dtype))


@lru_cache(maxsize=32)
def _neighbours(length: int, radius: int, device: torch.device) -> Tensor:
    """True where a voxel reads another at an offset, bool (voxel, offset, voxel read); beyond the ends, the last voxel."""
    voxels = torch.arange(length, device=device)
    read = (voxels[:, None] + torch.arange(-radius, radius + 1, device=device)).clamp(0, length - 1)
    return read[:, :, None] == voxels


def along(patches: Tensor, matrices: Tensor, axis: int) -> Tensor:
    """Patches (batch, channel, *patch) whose lines along an axis are multiplied by matrices (batch, length, length), at least in float32.

    One matrix product an axis starts far fewer operations on a device than a sum over the voxels of a kernel. Call it within
    `in_full_precision`.
    """
    precise = torch.promote_types(patches.dtype, torch.float32)
    lines = patches.to(precise).movedim(axis, -1)
    product = torch.bmm(lines.flatten(1, -2), matrices.to(precise).transpose(1, 2))
    return product.reshape(lines.shape).movedim(-1, axis)


def in_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without mixed precision, on the devices on which trainers use it."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def _like(values: Tensor, patches: Tensor) -> Tensor:
    """Values (batch,) in a shape that broadcasts to (batch, channel, *patch)."""
    return values.reshape(-1, *[1] * (patches.ndim - 1))
