import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_selma.pretraining.base import deepest_features, pooled
from nnunet_selma.pretraining.byol import Byol, byol_loss
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown


def test_the_loss_is_the_squared_distance_of_normalised_features():
    p, z = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    # cosines 24/25 and 0
    assert float(byol_loss(p, z)) == pytest.approx(2 - 2 * (24 / 25 + 0) / 2)
    distance = (functional.normalize(p, dim=1) - functional.normalize(z, dim=1)).square().sum(1).mean()
    assert float(byol_loss(p, z)) == pytest.approx(float(distance))


def test_gradients_reach_the_encoder_and_the_online_heads_and_not_the_target():
    net = network(plans())
    one = Byol(task(net))
    patches = torch.randn(2, 1, 16, 16, 16)
    one(net, patches, unknown(patches))["byol"].backward()
    assert next(net.encoder.parameters()).grad.abs().sum() > 0
    assert one.predictor[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in one.target.parameters())
    assert all(p.grad is None for n, p in net.named_parameters() if n.startswith("decoder.stages"))


def test_the_target_starts_as_a_copy_and_follows_with_a_rising_momentum():
    net = network(plans())
    one = Byol(task(net, steps=2, byol={"momentum": 0.5}))
    patches = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(one.target_projections(patches), one.online(net, patches))
        weight, old = next(net.encoder.parameters()), next(one.target["encoder"].parameters()).clone()
        weight.add_(1.0)
        one.after_step(net)
        torch.testing.assert_close(next(one.target["encoder"].parameters()), old + 0.5)
        one.after_step(net)  # momentum 0.75: a quarter of the half that is left
        torch.testing.assert_close(next(one.target["encoder"].parameters()), old + 0.5 + 0.125)
        one.after_step(net)  # the end: the target stands still
        torch.testing.assert_close(next(one.target["encoder"].parameters()), old + 0.625)


def test_the_state_comes_back():
    net = network(plans())
    one, again = Byol(task(net)), Byol(task(net))
    one.after_step(net)
    again.load_state_dict(one.state_dict())
    assert again.steps_done == 1
    assert torch.equal(again.projector[0].weight, one.projector[0].weight)


def test_pooled_features_tell_patches_apart_where_the_mean_cannot():
    """Instance norm gives every patch the same mean; the maximum is left."""
    features = nn.InstanceNorm3d(4)(torch.randn(6, 4, 4, 4, 4) ** 3)
    means, maxima = pooled(features).chunk(2, dim=1)
    assert means.std(0).max() < 1e-5
    assert maxima.std(0).min() > 0.05
    assert pooled(deepest_features(network(plans()), torch.randn(2, 1, 16, 16, 16))).shape == (2, 32)
