"""One training step of a pretext: network and pretext as one module, and the parameters that it leaves untrained."""

import torch
from torch import Tensor, nn

from nnunet_selma.networks.parts import pretrained_module
from nnunet_selma.pretraining.base import Pretext

MOST_IN_HALF = 4096.0
"""Largest normalised intensity for a network in half precision: the weighted sum of 27 such voxels stays far below 65504."""


class Step(nn.Module):
    """Network and pretext as one module, so that DistributedDataParallel sees every gradient, whatever part of them a pretext calls."""

    def __init__(self, network: nn.Module, pretext: Pretext) -> None:
        super().__init__()
        self.network, self.pretext = network, pretext
        # no buffer: DistributedDataParallel would overwrite it with that of the first process
        self.cut_voxels = torch.zeros((), dtype=torch.int64, device=next(network.parameters()).device)
        """Number of voxels since the last reset that were cut because half precision would overflow."""

    def forward(self, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """The pretext's named loss terms."""
        if in_half_precision(patches.device):
            self.cut_voxels += (patches.abs() > MOST_IN_HALF).sum()
        terms: dict[str, Tensor] = self.pretext(self.network, representable(patches), structures)
        return terms


def in_half_precision(device: torch.device) -> bool:
    """True within mixed precision in float16, whose largest number is 65504."""
    kind = device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.half


def representable(patches: Tensor) -> Tensor:
    """Patches cut to ±`MOST_IN_HALF` in half precision, so that the network's first layers do not overflow; else unchanged."""
    return patches.clamp(-MOST_IN_HALF, MOST_IN_HALF) if in_half_precision(patches.device) else patches


def freeze_untrained(network: nn.Module, pretext: Pretext) -> None:
    """Freeze the parameters that a pretext does not train, so that they do not decay and no process waits for their gradients."""
    heads = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if heads is not None and not pretext.deep_supervision:
        for head in list(heads)[:-1]:
            head.requires_grad_(False)
    if not pretext.trains_decoder:
        trained = {id(p) for p in pretrained_module(network).parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in trained)
