"""A plain vision transformer in 3D, for images of any size that is a multiple of its tokens."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError

_HEAD_UNIT = 6
"""Head sizes are a multiple of this: rotary embeddings turn pairs of numbers, a third of them for each axis."""
_ROTARY_BASE = 100.0
"""Base of the rotary embedding for images, whose rows of tokens are shorter than sentences (Heo et al. 2024, arXiv 2403.13298)."""


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of EVA-02's blocks (Fang et al. 2023, arXiv 2303.11331).

    These are the blocks of nnU-Net's transformer, Primus. Positions are encoded by rotation only, as distances between tokens, because a
    position within a crop of a large volume means nothing. Hence no weight depends on the size of the image.

    Args:
        input_channels: channels of the image.
        token: voxels of a token, (z, y, x).
        embed_dim: numbers in a token.
        depth: number of blocks.
        num_heads: attention heads; `embed_dim / num_heads` is a multiple of 6.

    Raises:
        SelmaError: `embed_dim / num_heads` is no multiple of 6.
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
        # timm's size is for two axes: two thirds of the size for three
        self.rope = RotaryEmbeddingCat(embed_dim // num_heads * 2 // 3, in_pixels=False, temperature=_ROTARY_BASE)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, embedding, z, y, x) of the tokens of an image (batch, channel, z, y, x), coarser by the size of a token."""
        return self.maps(image, 1)[0]

    def maps(self, image: Tensor, count: int) -> list[Tensor]:
        """Maps of the tokens after `count` evenly spaced blocks; the last of them is the last block."""
        grid = self.patch_embed(image)
        space = grid.shape[2:]
        rotation = self.rope.get_embed(list(space))
        tokens = grid.flatten(2).transpose(1, 2)  # (batch, token, embedding)
        after = []
        for block in self.blocks:
            tokens = block(tokens, rope=rotation)
            after.append(tokens)
        # rounded up; a shallow transformer returns some of its maps twice
        chosen = [after[-(-len(after) * number // count) - 1] for number in range(1, count + 1)]
        return [self.norm(tokens).transpose(1, 2).unflatten(2, space) for tokens in chosen]
