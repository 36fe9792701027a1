"""A vision transformer with a light adapter and a convolutional decoder, as team Tonyxu of SELMA3D 2024 built it (paper, section 4.2.4).

The adapter follows ViT-Adapter (Chen et al. 2022, arXiv 2205.08534), which 3DINO (Xu et al. 2025) extended to 3D: a convolutional stem keeps
the detail that tokens lose. Here it is lighter: stem and tokens are added at every scale, without attention between them.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.encoder_decoder import EncoderDecoder, Strides, total_strides
from nnunet_selma.networks.vit import ViT


def _convolution(inputs: int, outputs: int, stride: Sequence[int] = (1, 1, 1)) -> nn.Sequential:
    """A convolution as in nnU-Net, followed by instance norm and a leaky ReLU."""
    z, y, x = stride
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, (z, y, x), padding=1),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(inplace=True),
    )


class AdaptedEncoder(nn.Module):
    """Maps of a convolutional stem at every scale, plus the transformer's tokens resampled to that scale.

    Args:
        vit: the transformer.
        input_channels: channels of the image.
        embed_dim: numbers in a token.
        output_channels: channels of each scale, fine to coarse.
        strides: strides of each scale; their product is the size of a token.
    """

    def __init__(
        self, vit: ViT, input_channels: int, embed_dim: int, output_channels: Sequence[int], strides: Strides
    ) -> None:
        super().__init__()
        self.output_channels = list(output_channels)
        self.vit = vit
        self.stem = nn.ModuleList(
            _convolution(inputs, outputs, stride)
            for (inputs, outputs), stride in zip(pairwise([input_channels, *output_channels]), strides, strict=True)
        )
        self.projections = nn.ModuleList(nn.Conv3d(embed_dim, outputs, 1) for outputs in output_channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of an image (batch, channel, z, y, x), fine to coarse; finer scales come from earlier transformer blocks."""
        tokens = self.vit.maps(image, len(self.stem))
        detail, maps = image, []
        for stage, projection, coarse in zip(self.stem, self.projections, tokens, strict=True):
            detail = stage(detail)
            maps.append(detail + functional.interpolate(projection(coarse), detail.shape[2:], mode="trilinear"))
        return maps


class MergingStep(nn.Module):
    """One step of the decoder, as in nnU-Net's U-Net: the coarser map is upsampled and merged with the skip connection.

    Args:
        below: channels of the coarser map.
        width: channels of the skip connection and of the result.
        stride: stride between the two, (z, y, x).
    """

    def __init__(self, below: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        z, y, x = stride
        self.up = nn.ConvTranspose3d(below, width, (z, y, x), (z, y, x))
        self.merge = nn.Sequential(_convolution(2 * width, width), _convolution(width, width))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """A map (batch, channel, z, y, x) as fine as `skip`."""
        merged: Tensor = self.merge(torch.cat((self.up(coarse), skip), dim=1))
        return merged


class ViTAdapter(EncoderDecoder):
    """A ViT with adapter and decoder, with nnU-Net's constructor; the transformer, `encoder.vit`, can be trained or frozen alone.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        strides: strides of each scale of adapter and decoder, (z, y, x), ones for the first; their product is the size of a token.
        embed_dim: numbers in a token; 384 as in ViT-S, with eight heads instead of six, because 3D rotary embeddings need a head size that is
            a multiple of 6.
        depth: blocks of the transformer.
        num_heads: attention heads.
        features_per_stage: channels of each scale.
        deep_supervision: True returns logits of all scales but the coarsest.

    Raises:
        SelmaError: strides and features differ in number, or the embedding does not fit the heads.
    """

    key_to_stem = "encoder.vit.patch_embed"
    keys_to_in_proj = ("encoder.vit.patch_embed.proj", "encoder.stem.0.0")
    pretrained_part = "encoder.vit"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Strides,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 8,
        features_per_stage: Sequence[int] = (32, 64, 128, 256),
        deep_supervision: bool = False,
    ) -> None:
        if len(strides) != len(features_per_stage):
            raise SelmaError(
                f"{len(strides)} strides and {len(features_per_stage)} features_per_stage: give one of each for every scale"
            )
        vit = ViT(input_channels, total_strides(strides), embed_dim, depth, num_heads)
        encoder = AdaptedEncoder(vit, input_channels, embed_dim, features_per_stage, strides)
        super().__init__(encoder, strides, num_classes, MergingStep, deep_supervision=deep_supervision)
        for part in (encoder.stem, encoder.projections, self.decoder):
            part.apply(InitWeights_He())
