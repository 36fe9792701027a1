"""Masked volume inpainting: blocks are masked, the network fills them in, masked voxels count."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.masking import block_shape, draw_block_masks, fill_mask, moments
from nnunet_selma.pretexts.base import Pretext, Task
from nnunet_selma.pretexts.views import gaussian_blur

_LEAST_DEVIATION = 0.02
"""Standard deviations of the case: a patch with less is camera noise, which is not worth magnifying."""
_BACKGROUND = 4.0
"""Deviation of the Gaussian whose result is background for the target "residual", voxels along the finest axes."""


class MaskedInpainting(Pretext):
    """Masked volume inpainting as team XunDJ did it in SELMA3D 2024 (paper, section 4.2.3): regions are set to zero."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.spacing = task.settings.inpainting, task.spacing
        shape = self.settings.block_shape
        if shape is not None and len(shape) != len(task.patch):
            raise SelmaError(
                f"inpainting.block_shape has {len(shape)} numbers, the patch {len(task.patch)} axes; give one for each"
            )

    def draw_blocks(self, patches: Tensor) -> list[list[int]]:
        """The shape of a block for each sample."""
        patch = patches.shape[2:]
        if self.settings.block_shape is not None:
            fixed = zip(self.settings.block_shape, patch, strict=True)
            return [[min(edge, max(1, length // 2)) for edge, length in fixed]] * len(patches)
        edges = self.rng.choice(self.settings.block_edges, size=len(patches))
        return [block_shape(int(edge), patch, self.spacing) for edge in edges]

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch)."""
        return draw_block_masks(
            patches.shape[2:],
            self.draw_blocks(patches),
            ratio=self.settings.mask_ratio,
            rng=self.rng,
            generator=self.generator,
        )

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees, what it should answer, and the mask, of a batch (batch, channel, *patch)."""
        mask = self.draw_mask(patches)
        shown = self.brought_to_unit(patches, ~mask) if self.settings.standardise else patches
        return fill_mask(shown, mask, self.settings.fill, self.generator), self.as_answer(shown), mask

    def brought_to_unit(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches by the mean and the deviation of their visible voxels."""
        return standardised(patches, visible)

    def as_answer(self, patches: Tensor) -> Tensor:
        """Intensities in the unit in which the network answers."""
        return patches

    def error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """What is minimised: the error of the masked voxels, where the settings measure it."""
        return masked_error(prediction, target, mask, kind=self.settings.target, spacing=self.spacing)

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the masked voxels."""
        visible, target, mask = self.draw_task(patches)
        return {"inpainting": self.error(network(visible), target, mask)}

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Squared error on masked voxels beside that of the trivial answer, the mean of what is visible nearby."""
        visible, target, mask = self.draw_task(patches)
        return {
            "reconstruction_error": float(masked_error(network(visible), target, mask)),
            "trivial_error": float(masked_error(local_mean(target, ~mask), target, mask)),
        }


def standardised(patches: Tensor, visible: Tensor) -> Tensor:
    """Each patch and channel with the visible voxels' mean 0 and standard deviation 1 (He et al. 2022, normalised pixels).

    Without it, a patch counts by its contrast within the whole volume, and dim structures are not learnt at all.

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
    """
    mean, deviation = moments(patches, visible)
    return (patches - mean) / deviation.clamp(min=_LEAST_DEVIATION)


def masked_error(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    kind: str = "intensity",
    spacing: tuple[float, ...] = (),
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error over masked voxels.

    Args:
        prediction: (batch, channel, *patch).
        target: the same shape.
        mask: bool (batch, 1, *patch).
        kind: what of the masked difference is squared: "intensity" itself, its "residual" to a smoothed copy, or its "gradient". Both are
            linear, so this is the error of the residual or gradient of the image that the prediction completes.
        spacing: voxel size along the axes, for "residual".
        weight: of each voxel, (batch, 1, *patch).
    """
    difference = (prediction.float() - target.float()) * mask
    if kind == "residual":
        sigma = difference.new_full((len(difference),), _BACKGROUND)
        difference = difference - gaussian_blur(difference, sigma, spacing, _BACKGROUND)
    squared = difference.square()
    if kind == "gradient":
        squared = torch.zeros_like(difference)
        for axis in range(2, difference.ndim):
            step = difference.diff(dim=axis).square()
            squared = squared + functional.pad(step, [0, 0] * (difference.ndim - 1 - axis) + [0, 1])
    weights = mask if weight is None else mask * weight
    return (squared * weights).sum() / (weights.sum() * target.shape[1]).clamp(min=1e-6)


def local_mean(patches: Tensor, visible: Tensor, reach: float = 8.0) -> Tensor:
    """The mean of the visible voxels around each voxel, weighted by a Gaussian; the trivial way to fill a hole.

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
        reach: the Gaussian's standard deviation, voxels.
    """
    sigma = patches.new_full((len(patches),), reach)
    axes = [1.0] * (patches.ndim - 2)
    shown = visible.to(patches.dtype)
    around, count = (gaussian_blur(one, sigma, axes, reach) for one in (patches * shown, shown))
    mean, _ = moments(patches, visible)
    return torch.where(count > 1e-3, around / count.clamp(min=1e-3), mean)
