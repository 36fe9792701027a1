"""Masked volume inpainting: blocks are set to zero, the network fills them in, masked voxels count."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.masking import apply_mask, draw_block_masks
from nnunet_selma.pretexts.base import Pretext
from nnunet_selma.settings import InpaintingSettings

_LEAST_DEVIATION = 0.02
"""Standard deviations of the case: a patch with less is camera noise, which is not worth magnifying."""


class MaskedInpainting(Pretext):
    """Masked volume inpainting as team XunDJ did it in SELMA3D 2024 (paper, section 4.2.3): regions are set to zero.

    Args:
        settings: mask ratio and block edges.
        spacing: the plan's voxel size along the axes of a patch; coarse axes get blocks of fewer voxels.
        device: where masks are drawn.
    """

    def __init__(self, settings: InpaintingSettings, spacing: Sequence[float], device: torch.device) -> None:
        super().__init__()
        self.settings = settings
        self.spacing = list(spacing)
        self.generator = torch.Generator(device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the sequence of masks anew."""
        self.generator.manual_seed(seed)
        self.rng = np.random.default_rng(seed)

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch)."""
        return draw_block_masks(
            patches.shape[0],
            patches.shape[2:],
            ratio=self.settings.mask_ratio,
            edges=self.settings.block_edges,
            spacing=self.spacing,
            rng=self.rng,
            generator=self.generator,
        )

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees, what it should answer, and the mask, of a batch (batch, channel, *patch)."""
        mask = self.draw_mask(patches)
        target = standardised(patches, ~mask) if self.settings.standardise else patches
        return apply_mask(target, mask), target, mask

    def forward(self, network: nn.Module, patches: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the masked voxels."""
        visible, target, mask = self.draw_task(patches)
        return {"inpainting": masked_error(network(visible), target, mask)}

    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Error on masked voxels beside that of the trivial answer, the mean of what is visible of each patch."""
        visible, target, mask = self.draw_task(patches)
        axes = tuple(range(2, patches.ndim))
        shown = (~mask).expand_as(target)
        mean = (target * shown).sum(axes, keepdim=True) / shown.sum(axes, keepdim=True).clamp(min=1)
        return {
            "reconstruction_error": float(masked_error(network(visible), target, mask)),
            "trivial_error": float(masked_error(mean.expand_as(target), target, mask)),
        }


def standardised(patches: Tensor, visible: Tensor) -> Tensor:
    """Each patch and channel with the visible voxels' mean 0 and standard deviation 1 (He et al. 2022, normalised pixels).

    Without it, a patch counts by its contrast within the whole volume, and dim structures are not learnt at all.

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
    """
    axes = tuple(range(2, patches.ndim))
    shown = visible.expand_as(patches)
    count = shown.sum(axes, keepdim=True).clamp(min=1)
    mean = (patches * shown).sum(axes, keepdim=True) / count
    variance = ((patches - mean).square() * shown).sum(axes, keepdim=True) / count
    return (patches - mean) / variance.sqrt().clamp(min=_LEAST_DEVIATION)


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over masked voxels; prediction and target (batch, channel, *patch), mask (batch, 1, *patch)."""
    squared = (prediction.float() - target.float()).square() * mask
    return squared.sum() / (mask.sum() * target.shape[1]).clamp(min=1)
