import math

import pytest
import torch
from torch.nn import functional

from nnunet_selma.pretraining.simclr import Simclr, nt_xent
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_by_hand(temperature):
    """Two patches whose views are equal and at right angles: each view has one partner at cosine 1 and two others at 0."""
    first = torch.eye(2)
    expected = -math.log(math.exp(1 / temperature) / (math.exp(1 / temperature) + 2))
    assert float(nt_xent(first, 3 * first, temperature)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("count", "temperature"), [(2, 0.5), (5, 0.1)])
def test_nt_xent_is_that_of_the_definition(count, temperature):
    first, second = torch.randn(count, 7), torch.randn(count, 7)
    views = functional.normalize(torch.cat([first, second]), dim=1).double()
    terms = []
    for i in range(2 * count):
        others = [k for k in range(2 * count) if k != i]
        similar = {k: math.exp(float(views[i] @ views[k]) / temperature) for k in others}
        terms.append(-math.log(similar[(i + count) % (2 * count)] / sum(similar.values())))
    assert float(nt_xent(first, second, temperature)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_it_learns_to_tell_patches_apart():
    torch.manual_seed(0)
    net = network(plans())
    one = Simclr(task(net, simclr={"hidden": 32, "outputs": 16}, views={"crop": [0.9, 1.0]}))
    coarse = [functional.interpolate(torch.randn(2, 1, n, n, n), 16, mode="trilinear") for n in (2, 16)]
    patches = torch.cat(coarse)  # two smooth ones, two rough ones
    optimizer = torch.optim.Adam([*net.encoder.parameters(), *one.parameters()], 2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = one(net, patches, unknown(patches))["nt_xent"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    found = one.diagnostics(net, patches)
    assert found["view_agreement"] > found["agreement_of_others"]
