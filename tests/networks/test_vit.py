import itertools

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat

from nnunet_selma.networks.vit import ViT
from nnunet_selma.networks.vit_adapter import ViTAdapter


def vit(depth=3):
    torch.manual_seed(2)
    return ViT(input_channels=1, token=(2, 4, 4), embed_dim=48, depth=depth, num_heads=8)


@pytest.mark.parametrize("size", [(4, 8, 8), (2, 4, 12), (8, 4, 4), (2, 4, 4)])
def test_images_of_any_size_that_tokens_divide(size):
    tokens = vit()(torch.randn(2, 1, *size))
    assert tokens.shape == (2, 48, size[0] // 2, size[1] // 4, size[2] // 4)
    # instance norm, as in nnU-Net, wants more than one voxel where the network is coarsest
    if size != (2, 4, 4):
        strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
        adapted = ViTAdapter(1, 2, strides, embed_dim=48, depth=2, features_per_stage=[4, 6, 8])
        assert adapted(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_a_token_covers_its_own_voxels():
    """Without blocks a token depends on its voxels only, and lies in the map where they lie in the image."""
    transformer = vit()
    transformer.blocks = torch.nn.ModuleList([torch.nn.ModuleList()])
    transformer.blocks[0].forward = lambda tokens, rope: tokens
    image = torch.randn(1, 1, 4, 8, 12)
    changed = image.clone()
    changed[:, :, 2:4, 0:4, 8:12] += 1
    differs = (transformer(image) != transformer(changed)).any(1)[0]
    assert differs.nonzero().tolist() == [[1, 0, 2]]


def test_attention_knows_how_far_two_tokens_are_apart_along_each_axis_and_nothing_else():
    grid = (3, 4, 5)
    places = list(itertools.product(*map(range, grid)))
    heads = vit()
    rotation = heads.rope.get_embed(list(grid))
    query, key = torch.randn(2, 1, 6).expand(2, len(places), 6)
    scores = apply_rot_embed_cat(query, rotation) @ apply_rot_embed_cat(key, rotation).T
    by_offset = {}
    for (i, one), (j, other) in itertools.product(enumerate(places), repeat=2):
        by_offset.setdefault(tuple(b - a for a, b in zip(one, other, strict=True)), []).append(scores[i, j])
    assert all(torch.stack(same).std(unbiased=False) < 1e-5 for same in by_offset.values())
    means = torch.stack([same[0] for same in by_offset.values()])
    assert len(torch.unique(means.round(decimals=4))) > 0.9 * len(by_offset)


def test_maps_come_from_evenly_spaced_blocks_and_end_with_the_last():
    image = torch.randn(1, 1, 4, 8, 8)
    transformer = vit(depth=4)
    maps = transformer.maps(image, 4)
    assert torch.equal(maps[-1], transformer(image))
    for one, other in itertools.pairwise(maps):
        assert not torch.allclose(one, other)
    halves = transformer.maps(image, 2)
    assert torch.equal(halves[0], maps[1])
    shallow = vit(depth=2).maps(image, 4)
    assert torch.equal(shallow[0], shallow[1])
    assert torch.equal(shallow[2], shallow[3])
