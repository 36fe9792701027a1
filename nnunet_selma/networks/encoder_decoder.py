"""Parts that the networks share: an encoder, a decoder with skip connections, and nnU-Net's deep supervision."""

import math
from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError

Strides = Sequence[Sequence[int]]
"""How much each stage shrinks each axis; a list of numbers a stage, the first of them ones."""


def total_strides(strides: Strides) -> list[int]:
    """Their product along each axis: what the edges of an image must be multiples of."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


class SkipDecoder(nn.Module):
    """Climbs from the coarsest map to the finest, with a head on every step.

    Args:
        steps: one module a step, coarse to fine, called as `step(coarse, skip)`; it returns a map as fine as `skip`.
        channels: of what each step returns.
        num_classes: channels of the logits.
        dimensions: 2 or 3.
        deep_supervision: whether the logits of all steps are returned; may be switched at any time, as in nnU-Net's decoder.
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
        """Logits (batch, class, *space) as fine as the finest map, or with deep supervision those of all steps, finest first.

        Args:
            features: the encoder's maps (batch, channel, *space), fine to coarse; one more than there are steps.
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
    """A network of an encoder and a decoder, with the names by which nnU-Net's networks say where their weights are.

    Args:
        encoder: returns maps fine to coarse, and knows their `output_channels`.
        decoder: turns these maps into logits.
        strides: of the encoder's maps.
    """

    key_to_encoder = "encoder"
    key_to_stem: str
    """Where the layers are that read the image."""
    keys_to_in_proj: tuple[str, ...]
    """Layers whose weights depend on the number of input channels."""
    key_to_lpe: str | None = None
    """Where a learned positional embedding is; None: there is none, and the input may have any size that the strides divide."""
    pretrained_part = "encoder"
    """Submodule that pretext tasks on features train, and that freezing the encoder freezes."""

    def __init__(self, encoder: nn.Module, decoder: SkipDecoder, strides: Strides) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.divisors = total_strides(strides)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image (batch, channel, *space), as `SkipDecoder` returns them.

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
