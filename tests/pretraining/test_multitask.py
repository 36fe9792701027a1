import pytest
import torch
from torch.nn import functional

from nnunet_selma.pretraining.multitask import MultiTask, known_cross_entropy, rotation_plane, turn
from nnunet_selma.structures import PREFIXES
from tests.plans import network, plans
from tests.pretraining.tasks import task


@pytest.mark.parametrize(
    ("patch", "spacing", "expected"),
    [
        ((32, 32, 32), (1, 1, 1), ((1, 2), True)),
        ((32, 64, 64), (3.0, 1.0, 1.0), ((1, 2), True)),
        ((128, 128, 112), (1, 1, 1), ((0, 1), True)),
        ((64, 64, 48), (2.0, 1.0, 1.0), ((1, 2), False)),  # equal numbers of voxels of two sizes are no square
        ((20, 24), (1, 1), ((0, 1), False)),
    ],
)
def test_the_plane_of_rotation(patch, spacing, expected):
    assert rotation_plane(patch, spacing) == expected


def test_patches_turn_by_quarters():
    patches = torch.arange(8.0).reshape(2, 1, 1, 2, 2)
    turned = turn(patches, [0, 1], (1, 2))
    assert torch.equal(turned[0], patches[0])
    assert turned[1, 0, 0].tolist() == [[5.0, 7.0], [4.0, 6.0]]  # counterclockwise
    assert torch.equal(turn(turn(patches, [1, 3], (1, 2)), [3, 1], (1, 2)), patches)


def test_unknown_structures_do_not_count():
    scores = torch.randn(3, 5)
    known = known_cross_entropy(scores, torch.tensor([2, -1, 0]))
    assert float(known) == pytest.approx(float(functional.cross_entropy(scores[[0, 2]], torch.tensor([2, 0]))))
    assert float(known_cross_entropy(scores, torch.tensor([-1, -1, -1]))) == 0.0


def test_the_terms_are_weighted_and_can_be_left_out():
    net = network(plans())
    patches, structures = torch.randn(2, 1, 16, 16, 16), torch.tensor([0, 1])
    values = []
    for weight in (1.0, 2.0):
        torch.manual_seed(0)
        one = MultiTask(task(net, multitask={"rotation": weight, "contrast": 0.0}))
        values.append(one(net, patches, structures))
    assert set(values[0]) == {"inpainting", "rotation", "structure"}
    assert values[1]["rotation"].item() == pytest.approx(2 * values[0]["rotation"].item(), rel=1e-5)
    assert values[1]["structure"].item() == pytest.approx(values[0]["structure"].item(), rel=1e-5)


def test_gradients_reach_the_whole_network_and_every_head():
    net = network(plans())
    one = MultiTask(task(net))
    terms = one(net, torch.randn(2, 1, 16, 16, 16), torch.tensor([0, 3]))
    torch.stack(list(terms.values())).sum().backward()
    assert all(
        p.grad.abs().sum() > 0
        for p in (net.encoder.stages[0][0].convs[0].conv.weight, net.decoder.seg_layers[-1].weight)
    )
    assert all(getattr(one, head).weight.grad.abs().sum() > 0 for head in ("rotation", "structure"))


def test_it_learns_which_structure_a_case_shows():
    torch.manual_seed(0)
    net = network(plans())
    one = MultiTask(task(net, multitask={"inpainting": 0.0, "contrast": 0.0, "rotation": 0.0}))
    smooth = torch.nn.functional.interpolate(torch.randn(4, 1, 4, 4, 4), 16, mode="trilinear")
    patches, structures = torch.cat([torch.randn(4, 1, 16, 16, 16), smooth]), torch.tensor([0] * 4 + [3] * 4)
    optimizer = torch.optim.Adam([*net.parameters(), *one.parameters()], 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        one(net, patches, structures)["structure"].backward()
        optimizer.step()
    probabilities = one.classify(net, patches)
    assert probabilities.shape == (8, len(PREFIXES))
    assert (probabilities.argmax(1) == structures).float().mean() >= 7 / 8
