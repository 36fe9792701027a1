import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.pretraining.sparse import check_sparse_encoder, downsampled, sparse, visible_norm
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown


def masked(seed=0, shape=(16, 16, 16), edge=4):
    """A mask of whole voxels of the coarsest map, (1, 1, *shape); True is masked."""
    grid = torch.rand(1, 1, *[length // edge for length in shape], generator=torch.Generator().manual_seed(seed)) < 0.5
    return functional.interpolate(grid.float(), shape, mode="nearest").bool()


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_masked_changes_nothing_that_is_seen(residual):
    encoder, mask = network(plans(residual=residual)).encoder, masked()
    image = torch.randn(1, 1, 16, 16, 16)
    other = torch.where(mask, torch.randn(1, 1, 16, 16, 16) * 50, image)
    answers = []
    for seen in (image, other):
        with sparse(encoder, ~mask), torch.no_grad():
            # as in the pretext, masked voxels of the image are set to zero
            answers.append(encoder(seen.masked_fill(mask, 0.0)))
    assert all(torch.equal(*maps) for maps in zip(*answers, strict=True))
    for features in answers[0]:
        shown = downsampled(~mask, features.shape[2:])
        assert (features * ~shown == 0).all()
        assert (features * shown != 0).any()


def test_without_a_mask_the_encoder_answers_as_always():
    encoder, image = network(plans()).encoder, torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        usual = encoder(image)
        with sparse(encoder, torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)):
            answers = encoder(image)
        again = encoder(image)
    for features, expected, after in zip(answers, usual, again, strict=True):
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(after, expected)  # the hooks are gone


def test_the_norm_is_pytorchs_over_the_visible_voxels():
    layer, features = nn.InstanceNorm3d(3, affine=True), torch.randn(1, 3, 4, 6, 8)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    shown = torch.zeros(1, 1, 4, 6, 8)
    shown[..., :3, :] = 1
    expected = layer(features[..., :3, :])
    answer = visible_norm(features, shown, layer)
    torch.testing.assert_close(answer[..., :3, :], expected)
    assert (answer[..., 3:, :] == 0).all()


def test_other_norms_are_refused_with_a_sentence():
    with pytest.raises(SelmaError, match=r"inpainting\.sparse needs a convolutional encoder with instance norm"):
        check_sparse_encoder(nn.Sequential(nn.Conv3d(1, 1, 3), nn.BatchNorm3d(1)))


def test_the_decoder_reads_tokens_where_it_is_masked():
    net = network(plans())
    one = MaskedInpainting(task(net, inpainting={"sparse": True}))
    assert [tuple(token.shape) for token in one.tokens] == [(1, 4, 1, 1, 1), (1, 8, 1, 1, 1), (1, 16, 1, 1, 1)]
    for number, token in enumerate(one.tokens):
        nn.init.constant_(token, 10.0 + number)
    mask = masked()
    maps = one.encode(net, torch.randn(1, 1, 16, 16, 16), mask)
    for number, features in enumerate(maps):
        hidden = downsampled(mask, features.shape[2:]).expand_as(features)
        assert (features[hidden] == 10.0 + number).all()
        assert (features[~hidden] != 10.0 + number).all()
    patches = torch.randn(2, 1, 16, 16, 16)
    one(net, patches, unknown(patches))["inpainting"].backward()
    assert all(token.grad.abs().sum() > 0 for token in one.tokens)
    assert all(p.grad is not None for n, p in net.named_parameters() if "seg_layers.0" not in n)
