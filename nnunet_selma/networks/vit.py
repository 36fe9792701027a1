"""A plain vision transformer in 3D that takes images of any size its tokens divide."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError

_HEAD_UNIT = 6
"""Rotation turns pairs of numbers, a third of them for each axis."""
_ROTARY_BASE = 100.0
"""As for images (Heo et al. 2024, arXiv 2403.13298): a row of tokens is short, a sentence is long."""


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of EVA-02's blocks (Fang et al. 2023, arXiv 2303.11331).

    These are the blocks of nnU-Net's own transformer, Primus. Position is rotary only: it says how far two tokens are from each other,
    not where in the patch they lie, which in a crop of a large volume means nothing. Hence no weight depends on the size of the image.

    Args:
        input_channels: of the image.
        token: voxels that one token covers, (z, y, x).
        embed_dim: numbers in a token.
        depth: number of blocks.
        num_heads: attention heads; `embed_dim / num_heads` is a multiple of 6.

    Raises:
        SelmaError: an embedding that the heads do not divide so.
    """

    def __init__(self, input_channels: int, token: Sequence[int], embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % (_HEAD_UNIT * num_heads):
            raise SelmaError(
                f"an embedding of {embed_dim} does not fit {num_heads} heads: give a multiple of {_HEAD_UNIT * num_heads}"
            )
        self.patch_embed = PatchEmbed(tuple(token), input_channels, embed_dim)
        self.blocks = nn.ModuleList(
            EvaBlock(embed_dim, num_heads, mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True, num_prefix_tokens=0)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        # its size is that of a rotation of two axes: two thirds of what three axes fill
        self.rope = RotaryEmbeddingCat(embed_dim // num_heads * 2 // 3, in_pixels=False, temperature=_ROTARY_BASE)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """The tokens of an image (batch, channel, z, y, x) as a map (batch, embedding, z, y, x), coarser by the token's size."""
        return self.maps(image, 1)[0]

    def maps(self, image: Tensor, count: int) -> list[Tensor]:
        """Such maps after `count` blocks, evenly spaced; the last is that of the last block."""
        grid = self.patch_embed(image)
        space = grid.shape[2:]
        rotation = self.rope.get_embed(list(space))
        tokens = grid.flatten(2).transpose(1, 2)  # (batch, token, embedding)
        after = []
        for block in self.blocks:
            tokens = block(tokens, rope=rotation)
            after.append(tokens)
        # rounded up, so that a shallow transformer gives some of its maps twice
        chosen = [after[-(-len(after) * number // count) - 1] for number in range(1, count + 1)]
        return [self.norm(one).transpose(1, 2).unflatten(2, space) for one in chosen]
