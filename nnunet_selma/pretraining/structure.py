"""Structure-aware inpainting: masks fall on blobs and tubes more readily, and errors there count more."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_selma.pretraining.base import Task
from nnunet_selma.pretraining.inpainting import MaskedInpainting, masked_error, standardised
from nnunet_selma.pretraining.masking import block_shape, draw_block_masks, fill_mask, repeated
from nnunet_selma.pretraining.structure_response import structure_response

_MOST_WEIGHT = 10.0
"""Greatest weight of a voxel: a single bright speck must not be the whole loss."""
_ON_A_TUBE = 1.5
"""Response of a block, in units of the patch's mean, from which it lies on a tube."""


class StructureInpainting(MaskedInpainting):
    """Inpainting that looks for structures (what the SELMA3D paper asks for in sections 5.3 and 6); no label is used.

    Cells and vessels are a few per cent of the voxels, so that plain inpainting mostly learns background. Here the multi-scale response of
    bright blobs and tubes says which blocks are masked more readily and which errors count more; some patches can get small blocks here
    and there on tubes instead (`structure.cut_share`, off by default), so that a branch is cut and has to be bridged.
    """

    can_ask_every_step = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.structure = task.settings.structure
        self.answered: tuple[Tensor, Tensor] | None = None

    def brought_to_unit(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches by the mean and the deviation of all of their voxels: what masks leave is the background."""
        return standardised(patches, torch.ones_like(visible))

    def as_answer(self, patches: Tensor) -> Tensor:
        """The inverse hyperbolic sine: linear in the background, logarithmic in what is bright.

        A cell may be tens of standard deviations above its surroundings; a few hidden cells would be the whole loss.
        """
        return torch.asinh(patches)

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the network, its target, and the mask; blocks are drawn by the response of the target."""
        shown = self.brought_to_unit(patches, patches) if self.settings.standardise else patches
        target = self.as_answer(shown)
        mask = self.draw_mask(target)
        return fill_mask(shown, mask, self.settings.fill, self.generator), target, mask

    @torch.no_grad()
    def response(self, patches: Tensor, kind: str) -> Tensor:
        """How much each voxel looks like a structure, in units of the patch's mean, (batch, *patch)."""
        found = structure_response(patches, self.spacing, scales=self.structure.scales, kind=kind)
        return found / found.mean(tuple(range(1, found.ndim)), keepdim=True).clamp(min=1e-6)

    def response_of_answer(self, target: Tensor) -> Tensor:
        """The response of what the network should answer; computed when a mask is drawn, and remembered for the error of the same step."""
        if self.answered is None or self.answered[0] is not target:
            self.answered = target, self.response(target, self.structure.kind)
        return self.answered[1]

    def where_to_mask(self, patches: Tensor) -> dict[str, Any]:
        """Blocks with structures are drawn more readily."""
        return {
            "response": self.on_grid(self.response_of_answer(patches)),
            "preference": self.structure.preference,
        }

    def on_grid(self, response: Tensor) -> Tensor:
        """A response (batch, *patch) on the grid on which masks are drawn: the mean over each of its voxels."""
        if max(self.stride) == 1:
            return response
        grid = [length // stride for length, stride in zip(response.shape[1:], self.stride, strict=True)]
        return functional.interpolate(response.unsqueeze(1), grid, mode="area").squeeze(1)

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch)."""
        masks = super().draw_mask(patches)
        cut = self.rng.random(len(patches)) < self.structure.cut_share
        if cut.any():
            smallest = block_shape(min(self.settings.block_edges), patches.shape[2:], self.spacing)
            smallest = [max(1, edge // stride) for edge, stride in zip(smallest, self.stride, strict=True)]
            tubes = self.on_grid(self.response(patches, "tubes"))
            gaps = draw_block_masks(
                tubes.shape[1:],
                [smallest] * len(patches),
                ratio=self.structure.cut_ratio,
                rng=self.rng,
                generator=self.generator,
                response=tubes,
                preference=0.0,
                least=_ON_A_TUBE,
            )
            gaps = repeated(gaps, self.stride)
            masks = torch.stack([gap if one else mask for gap, mask, one in zip(gaps, masks, cut, strict=True)])
        return masks

    def error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The error of the voxels that count, weighted by how much the true patch looks like a structure there."""
        found = self.response_of_answer(target).clamp(max=_MOST_WEIGHT)
        weight = (1 + self.structure.weight * found).unsqueeze(1)
        counted = self.counted(mask)
        return masked_error(prediction, target, counted, kind=self.settings.target, spacing=self.spacing, weight=weight)
