"""Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266; pretrained by Tang et al. 2022, arXiv 2111.14791) from MONAI's blocks.

It equals MONAI's network of that name, layer by layer. With fewer than four stages of attention it also takes small patches.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.networks.encoder_decoder import EncoderDecoder, Strides

try:
    from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
    from monai.networks.nets.swin_unetr import SwinTransformer
except ImportError as error:
    raise SelmaError(MONAI_MISSING) from error

_BLOCK = {"spatial_dims": 3, "kernel_size": 3, "norm_name": "instance", "res_block": True}


class Swin(SwinTransformer):  # type: ignore[misc]
    """MONAI's transformer, for any number of stages."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of an image (batch, channel, z, y, x), fine to coarse: the embedding, then each stage."""
        x = self.pos_drop(self.patch_embed(image))
        maps = [self.proj_out(x, normalize=True)]
        for stage in (*self.layers1, *self.layers2, *self.layers3, *self.layers4):
            x = stage(x.contiguous())
            maps.append(self.proj_out(x, normalize=True))
        return maps


class SwinEncoder(nn.Module):
    """Maps of the image, of its embedding and of each stage of attention, each through a convolutional block except the last but one.

    Args:
        input_channels: channels of the image.
        token: voxels of a token, (z, y, x).
        feature_size: channels of the embedding; each stage of attention doubles them and halves every axis.
        depths: transformer blocks of each stage, one to four stages.
        num_heads: attention heads of each stage.
        window_size: edge of the windows in which attention is computed, tokens.
    """

    def __init__(
        self,
        input_channels: int,
        token: Sequence[int],
        feature_size: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
    ) -> None:
        super().__init__()
        hidden = [feature_size * 2**stage for stage in range(len(depths) + 1)]
        self.output_channels = [feature_size, *hidden]
        self.swin = Swin(
            in_chans=input_channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=tuple(token),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            spatial_dims=3,
        )
        self.blocks = nn.ModuleList(
            UnetrBasicBlock(in_channels=inputs, out_channels=outputs, stride=1, **_BLOCK)
            for inputs, outputs in zip([input_channels, *hidden], self.output_channels, strict=True)
        )
        self.blocks[-2] = nn.Identity()  # the last map but one goes to the decoder unchanged

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of an image (batch, channel, z, y, x), fine to coarse; the first is as fine as the image."""
        maps = [image, *self.swin(image)]
        return [block(features) for block, features in zip(self.blocks, maps, strict=True)]


def _up_block(below: int, width: int, stride: Sequence[int]) -> nn.Module:
    """MONAI's step of the decoder."""
    block: nn.Module = UnetrUpBlock(in_channels=below, out_channels=width, upsample_kernel_size=list(stride), **_BLOCK)
    return block


class SwinUNETR(EncoderDecoder):
    """Swin UNETR with nnU-Net's constructor; the defaults are the paper's.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        strides: [1, 1, 1], the voxels of a token, and [2, 2, 2] for each stage of attention.
        feature_size: channels of the embedding, a multiple of the first number of heads.
        depths: transformer blocks of each stage, one to four stages.
        num_heads: attention heads of each stage.
        window_size: edge of an attention window, tokens.
        deep_supervision: True returns logits of all scales but the coarsest.

    Raises:
        SelmaError: strides and depths do not fit each other.
    """

    key_to_stem = "encoder.swin.patch_embed"
    pretrained_part = "encoder.swin"  # pretexts on features do not train the convolutional blocks
    monai_names: ClassVar[dict[str, str]] = {
        r"^swinViT\.": "encoder.swin.",
        r"^encoder\.(?=patch_embed|layers)": "encoder.swin.",  # MONAI's `filter_swinunetr` reads such a file
        r"^encoder10\.": "encoder.blocks.5.",
        **{rf"^encoder{number + 1}\.": f"encoder.blocks.{number}." for number in range(4)},
        **{rf"^decoder{5 - number}\.": f"decoder.steps.{number}." for number in range(5)},
        r"^out\.conv\.conv\.": "decoder.seg_layers.4.",
        r"^(encoder\.swin\.layers\d\.0\.)0\.": r"\1",
        r"\.mlp\.fc": ".mlp.linear",  # in the weights of Tang et al.
    }
    """Regular expressions for MONAI's names of these weights, and their replacements, in order."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Strides,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        deep_supervision: bool = False,
    ) -> None:
        first, token, *halvings = [list(stage) for stage in strides]
        if first != [1, 1, 1] or halvings != [[2, 2, 2]] * len(depths) or not 1 <= len(depths) == len(num_heads) <= 4:
            raise SelmaError(
                f"strides {strides} do not fit {len(depths)} stage(s) of attention: give [1, 1, 1], the voxels of a token, and [2, 2, 2] for each stage"
            )
        encoder = SwinEncoder(input_channels, token, feature_size, depths, num_heads, window_size)
        super().__init__(encoder, strides, num_classes, _up_block, deep_supervision=deep_supervision)
        block = "encoder.blocks.0.layer"
        # the block on the image has a shortcut only if its channels change
        shortcut = (f"{block}.conv3.conv",) if input_channels != feature_size else ()
        self.keys_to_in_proj = ("encoder.swin.patch_embed.proj", f"{block}.conv1.conv", *shortcut)
