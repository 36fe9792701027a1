"""Structure-aware inpainting: blobs and tubes are masked more often, and errors there count more."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_selma.pretraining.base import Task
from nnunet_selma.pretraining.inpainting import MaskedInpainting, masked_error, standardised
from nnunet_selma.pretraining.masking import draw_block_masks, fill_mask, repeated
from nnunet_selma.pretraining.structure_response import structure_response

_MOST_WEIGHT = 10.0
"""Greatest response that weighs an error: a single bright speck must not be the whole loss."""
_ON_A_TUBE = 1.5
"""Least response of a block on a tube, in units of the patch's mean."""


class StructureInpainting(MaskedInpainting):
    """Inpainting whose masks and errors prefer structures, without labels (asked for by the SELMA3D paper, sections 5.3 and 6).

    Cells and vessels are a few per cent of the voxels, so that plain inpainting mostly learns background. Here the response of filters for
    bright blobs and tubes decides how often a block is masked and how much an error counts. A share of the patches can get small blocks on
    tubes instead (`structure.cut_share`, off by default), so that the network must bridge gaps in branches.
    """

    allows_deep_supervision = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.structure = task.settings.structure
        self._last_response: tuple[Tensor, Tensor] | None = None

    def normalise(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches with mean 0 and standard deviation 1 of all voxels, because the visible ones are mostly background."""
        return standardised(patches, torch.ones_like(visible))

    def to_target(self, patches: Tensor) -> Tensor:
        """The inverse hyperbolic sine of intensities: linear in the background, logarithmic in bright structures.

        A cell may be tens of standard deviations above its surroundings; otherwise a few masked cells would be the whole loss.
        """
        return torch.asinh(patches)

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the network, its target, and the mask; blocks are drawn by the response of the target."""
        normalised = self.normalise(patches, patches) if self.settings.standardise else patches
        target = self.to_target(normalised)
        mask = self.draw_mask(target)
        return fill_mask(normalised, mask, self.settings.fill, self.generator), target, mask

    @torch.no_grad()
    def response(self, patches: Tensor, kind: str) -> Tensor:
        """Likeness of each voxel to a structure, in units of the patch's mean, (batch, *patch)."""
        response = structure_response(patches, self.spacing, scales=self.structure.scales, kind=kind)
        return response / response.mean(tuple(range(1, response.ndim)), keepdim=True).clamp(min=1e-6)

    def target_response(self, target: Tensor) -> Tensor:
        """The response of a target, computed when its mask is drawn and kept for the error of the same step."""
        if self._last_response is None or self._last_response[0] is not target:
            self._last_response = target, self.response(target, self.structure.kind)
        return self._last_response[1]

    def block_preference(self, patches: Tensor) -> dict[str, Any]:
        """Arguments of `draw_block_masks`, so that blocks with structures are drawn more often."""
        return {
            "response": self.on_mask_grid(self.target_response(patches)),
            "preference": self.structure.preference,
        }

    def on_mask_grid(self, response: Tensor) -> Tensor:
        """A response (batch, *patch) on the grid on which masks are drawn: the mean over each of its voxels."""
        if max(self.stride) == 1:
            return response
        grid = self.mask_grid(response.shape[1:])
        return functional.interpolate(response.unsqueeze(1), grid, mode="area").squeeze(1)

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch)."""
        masks = super().draw_mask(patches)
        cut = self.rng.random(len(patches)) < self.structure.cut_share
        if cut.any():
            tubes = self.on_mask_grid(self.response(patches, "tubes"))
            gaps = draw_block_masks(
                tubes.shape[1:],
                [self.block(min(self.settings.block_edges), patches.shape[2:])] * len(patches),
                ratio=self.structure.cut_ratio,
                rng=self.rng,
                generator=self.generator,
                response=tubes,
                preference=0.0,
                least=_ON_A_TUBE,
            )
            gaps = repeated(gaps, self.stride)
            masks = torch.stack([gap if is_cut else mask for gap, mask, is_cut in zip(gaps, masks, cut, strict=True)])
        return masks

    def error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The error of the voxels that count, weighted by the response of the target."""
        response = self.target_response(target).clamp(max=_MOST_WEIGHT)
        return masked_error(
            prediction,
            target,
            self.counted(mask),
            kind=self.settings.target,
            spacing=self.spacing,
            weight=(1 + self.structure.weight * response).unsqueeze(1),
        )
