import pytest
import torch

from nnunet_selma.pretraining.distillation import PrototypeHead, SelfDistillation, local_size, sinkhorn
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown

SMALL = {"prototypes": 32, "hidden": 24, "bottleneck": 8, "local_crops": 2}


def pretext(net, *, steps=99, **settings):
    return SelfDistillation(task(net, steps=steps, distillation={**SMALL, **settings}))


def test_the_student_is_asked_what_the_teacher_says_by_hand():
    one = pretext(network(plans()), student_temperature=0.5)
    wanted, answered = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.0, 1.0]])
    logs = (answered / 0.5).log_softmax(1)
    expected = -(0.25 * logs[0, 0] + 0.75 * logs[0, 1])
    assert float(one.cross_entropy(wanted, answered)) == pytest.approx(float(expected))


def test_the_centre_is_taken_away_and_follows_the_teachers_scores():
    one = pretext(network(plans()))
    one.train()
    scores = torch.zeros(4, 32)
    scores[:, 5] = 1.0
    first = one.sharpened(scores, "view")
    assert first[0].argmax() == 5
    assert float(one.view_centre[5]) == pytest.approx(0.1)  # a tenth of the new mean
    for _ in range(60):
        last = one.sharpened(scores, "view")
    assert float(last[0].max() - last[0].min()) < 0.05  # what all patches say is no answer
    one.eval()
    before = one.view_centre.clone()
    one.sharpened(scores, "view")
    assert torch.equal(one.view_centre, before)


def test_the_teachers_temperature_rises():
    one = pretext(network(plans()))
    assert one.teacher_temperature() == pytest.approx(0.04)
    one.steps_done = 33
    assert one.teacher_temperature() == pytest.approx(0.07)
    one.steps_done = 99
    assert one.teacher_temperature() == pytest.approx(0.07)


def test_sinkhorn_uses_all_prototypes_alike(rng):
    scores = torch.tensor(rng.normal(size=(64, 4)))
    scores[:, 0] += 3  # one that would take everything
    assert scores.softmax(1).mean(0)[0] > 0.7
    found = sinkhorn(scores, 1.0)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.mean(0), torch.full((4,), 0.25), atol=0.03, rtol=0)
    # the order of a sample's answers is kept relative to other samples
    assert found[scores[:, 1].argmax(), 1] > found[scores[:, 1].argmin(), 1]


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_gradients_reach_the_student_and_only_it(centring):
    net = network(plans())
    one = pretext(net, centring=centring)
    patches = torch.randn(2, 1, 16, 16, 16)
    terms = one(net, patches, unknown(patches))
    assert set(terms) == {"views", "tokens"}
    torch.stack(list(terms.values())).sum().backward()
    assert next(net.encoder.parameters()).grad.abs().sum() > 0
    assert all(p.grad is not None for p in one.student.parameters())
    assert all(p.grad is None for p in one.teacher.parameters())


def test_sinkhorn_is_for_tokens_and_the_centre_for_views():
    one = pretext(network(plans()), centring="sinkhorn")
    one.train()
    scores = torch.zeros(64, 32)
    scores[:, 5] = 0.5
    assert one.sharpened(scores, "view")[0].argmax() == 5
    assert float(one.view_centre[5]) > 0
    torch.testing.assert_close(one.sharpened(scores, "token")[0], torch.full((32,), 1 / 32))
    assert float(one.token_centre.abs().max()) == 0


def test_masked_tokens_cover_the_share_that_was_drawn():
    one = pretext(network(plans()), mask_ratio=[0.25, 0.25])
    masked, places = one.draw_tokens(5, (4, 4, 4))
    assert masked.shape == (5, 4, 4, 4)
    assert (masked.flatten(1).sum(1) == 16).all()
    assert not torch.equal(masked[0], masked[1])
    assert torch.equal(torch.nonzero(masked.flatten()).flatten(), places.sort().values)


def test_without_masks_and_small_views_it_is_dino_on_two_views():
    net = network(plans())
    one = pretext(net, mask_ratio=[0.0, 0.0], local_crops=0)
    patches = torch.randn(2, 1, 16, 16, 16)
    terms = one(net, patches, unknown(patches))
    assert terms["tokens"].item() == 0.0
    assert terms["views"].item() > 0


def test_prototypes_give_cosines():
    head = PrototypeHead(6, 8, 4, 10)
    cosines = head(torch.randn(3, 6)).detach()
    assert cosines.shape == (3, 10)
    assert float(cosines.abs().max()) <= 1 + 1e-6
    assert head(torch.zeros(2, 5, 6)).shape == (2, 5, 10)


@pytest.mark.parametrize(
    ("patch", "strides", "share", "size"),
    [
        ((32, 32, 32), (4, 4, 4), 0.5, [16, 16, 16]),
        ((16, 64, 64), (8, 8, 8), 0.4, [16, 24, 24]),
        ((8, 32), (8, 8), 0.1, [8, 16]),
    ],
)
def test_small_views_are_whole_tokens(patch, strides, share, size):
    assert local_size(patch, strides, share) == size


def test_diagnostics():
    net = network(plans())
    found = pretext(net).eval().diagnostics(net, torch.randn(2, 1, 16, 16, 16))
    assert found["teacher_agreement"] == pytest.approx(1.0, abs=1e-4)  # the teacher is still a copy
    assert 1 <= found["prototypes_used"] <= 32
