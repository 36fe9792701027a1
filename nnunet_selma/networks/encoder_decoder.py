"""Base of the networks: an encoder, a decoder with skip connections, and nnU-Net's deep supervision."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError

Strides = Sequence[Sequence[int]]
"""Factors by which each stage shrinks each axis; a list of numbers for each stage, ones for the first."""


def total_strides(strides: Strides) -> list[int]:
    """Product of the strides along each axis; the edges of an image must be multiples of it."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


class SkipDecoder(nn.Module):
    """Steps from the coarsest map to the finest, each with a segmentation head.

    Args:
        steps: one module for each step, coarse to fine, called as `step(coarse, skip)`; it returns a map as fine as `skip`.
        channels: channels of the map that each step returns.
        num_classes: channels of the logits.
        dimensions: 2 or 3.
        deep_supervision: True returns the logits of all steps; may be switched at any time, as in nnU-Net's decoder.
    """

    def __init__(
        self,
        steps: Sequence[nn.Module],
        channels: Sequence[int],
        num_classes: int,
        *,
        dimensions: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        convolution = convert_dim_to_conv_op(dimensions)
        self.deep_supervision = deep_supervision
        self.steps = nn.ModuleList(steps)
        self.seg_layers = nn.ModuleList(convolution(width, num_classes, 1) for width in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits (batch, class, *space) at the finest resolution; with deep supervision a list for all steps, finest first.

        Args:
            features: the encoder's maps (batch, channel, *space), fine to coarse; one more than the number of steps.
        """
        coarse, *skips = reversed(features)
        logits: list[Tensor] = []
        last = len(self.steps) - 1
        for number, (step, skip, head) in enumerate(zip(self.steps, skips, self.seg_layers, strict=True)):
            coarse = step(coarse, skip)
            if self.deep_supervision or number == last:
                logits.append(head(coarse))
        return logits[::-1] if self.deep_supervision else logits[0]


class EncoderDecoder(nn.Module):
    """A network of an encoder and a decoder, with the attributes in which nnU-Net's networks name their parts.

    Args:
        encoder: returns maps fine to coarse; its `output_channels` are their channels.
        strides: strides of these maps and axes, ones for the first map.
        num_classes: channels of the logits.
        step: called as `step(below, width, stride)`, makes a step of the decoder between maps of so many channels.
        deep_supervision: True returns logits of all scales but the coarsest.
    """

    key_to_encoder = "encoder"
    key_to_stem: str
    """Name of the module whose layers read the image."""
    keys_to_in_proj: tuple[str, ...]
    """Names of the layers whose weights depend on the number of input channels."""
    key_to_lpe: str | None = None
    """Name of a learned positional embedding; None: there is none, so that the input may have any size that the strides divide."""
    pretrained_part = "encoder"
    """Name of the submodule that pretexts on features train, and that a frozen encoder freezes."""

    def __init__(
        self,
        encoder: nn.Module,
        strides: Strides,
        num_classes: int,
        step: Callable[[int, int, Sequence[int]], nn.Module],
        *,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        coarse_to_fine: list[int] = list(encoder.output_channels)[::-1]  # type: ignore[arg-type]
        pairs = zip(pairwise(coarse_to_fine), strides[:0:-1], strict=True)
        steps = [step(below, width, stride) for (below, width), stride in pairs]
        self.encoder = encoder
        self.decoder = SkipDecoder(
            steps,
            coarse_to_fine[1:],
            num_classes,
            dimensions=len(strides[0]),
            deep_supervision=deep_supervision,
        )
        self.divisors = total_strides(strides)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image (batch, channel, *space), see `SkipDecoder.forward`.

        Raises:
            SelmaError: an edge that the strides do not divide.
        """
        space = list(image.shape[2:])
        if any(edge % stride for edge, stride in zip(space, self.divisors, strict=True)):
            raise SelmaError(
                f"{type(self).__name__} cannot take {space} voxels: the edges must be multiples of {self.divisors}; change patch_size"
            )
        logits: Tensor | list[Tensor] = self.decoder(self.encoder(image))
        return logits
