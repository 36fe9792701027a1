"""Attention U-Net (Oktay et al. 2018, arXiv 1804.03999): the coarser map gates the skip connections. Its blocks are MONAI's."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.networks.encoder_decoder import EncoderDecoder, Strides

try:
    from monai.networks.blocks import Convolution
    from monai.networks.nets.attentionunet import AttentionBlock, ConvBlock, UpConv
except ImportError as error:
    raise SelmaError(MONAI_MISSING) from error


class ConvEncoder(nn.Module):
    """Two convolutions for each stage, the first of them with the stage's stride.

    Args:
        input_channels: channels of the image.
        output_channels: channels of each stage's map.
        strides: strides of each stage.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self, input_channels: int, output_channels: Sequence[int], strides: Strides, spatial_dims: int
    ) -> None:
        super().__init__()
        self.output_channels = list(output_channels)
        self.stages = nn.ModuleList(
            ConvBlock(spatial_dims, inputs, outputs, strides=tuple(stride))
            for (inputs, outputs), stride in zip(pairwise([input_channels, *output_channels]), strides, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of an image (batch, channel, *space), fine to coarse; the first is as fine as the image."""
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class GatedStep(nn.Module):
    """One step of the decoder: the upsampled coarser map weights the places of the skip connection (section 3).

    Args:
        below: channels of the coarser map.
        width: channels of the skip connection and of the result.
        stride: stride between the coarser map and the skip connection.
    """

    def __init__(self, below: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        spatial_dims = len(stride)
        self.up = UpConv(spatial_dims, below, width, strides=tuple(stride))
        self.attention = AttentionBlock(spatial_dims, f_int=width // 2, f_g=width, f_l=width)
        self.merge = Convolution(spatial_dims, 2 * width, width)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """A map (batch, channel, *space) as fine as `skip`."""
        upsampled = self.up(coarse)
        merged: Tensor = self.merge(torch.cat((self.attention(g=upsampled, x=skip), upsampled), dim=1))
        return merged


class AttentionUNet(EncoderDecoder):
    """Attention U-Net with nnU-Net's constructor; batch normalisation as in the paper.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        spatial_dims: 2 or 3.
        strides: strides of each stage and axis, ones for the first stage.
        features_per_stage: channels of each stage, at least 2.
        deep_supervision: True returns logits of all scales but the coarsest.

    Raises:
        SelmaError: strides and features differ in number, or strides have another dimension.
    """

    key_to_stem = "encoder.stages.0"
    keys_to_in_proj = ("encoder.stages.0.conv.0.conv",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        spatial_dims: int,
        strides: Strides,
        features_per_stage: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        if len(strides) != len(features_per_stage) or any(len(stride) != spatial_dims for stride in strides):
            raise SelmaError(
                f"strides {strides} do not fit {len(features_per_stage)} stages in {spatial_dims}D: give {spatial_dims} numbers for each stage"
            )
        encoder = ConvEncoder(input_channels, features_per_stage, strides, spatial_dims)
        super().__init__(encoder, strides, num_classes, GatedStep, deep_supervision=deep_supervision)
