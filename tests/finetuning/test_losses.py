"""Losses against hand-computed values and independent implementations."""

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from scipy import ndimage

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.losses import (
    TERMS,
    Output,
    boundary,
    build_loss,
    cldice,
    distance_to,
    focal,
    signed_distance,
    soft_skeleton,
)
from nnunet_selma.nnunet.settings import FinetuningSettings
from tests.measures import calls, saved_bytes

SHAPES = {2: (14, 18), 3: (8, 10, 12)}
IGNORED = 9


def case(dimensions=3, classes=3, *, batch=2, seed=0, ignored=0.0):
    """Logits and labels, blobs rather than noise."""
    generator = torch.Generator().manual_seed(seed)
    space = SHAPES[dimensions]
    logits = 2 * torch.randn(batch, classes, *space, generator=generator)
    pool = torch.nn.functional.avg_pool3d if dimensions == 3 else torch.nn.functional.avg_pool2d
    smooth = pool(torch.randn(batch, classes, *space, generator=generator), 3, 1, 1)
    labels = smooth.argmax(1, keepdim=True)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORED
    return logits, labels.to(torch.int16)


def loss_named(name, space, *, batch_dice=False, ignore_label=None, spacing=None):
    return build_loss(
        name,
        batch_dice=batch_dice,
        ignore_label=ignore_label,
        ddp=False,
        spacing=spacing or (1.0,) * len(space),
        patch_size=space,
    )


def output_of(logits, labels, known=None):
    labels = labels if known is None else torch.where(known, labels, 0)
    return Output(logits, logits.softmax(1), labels.long(), known)


def one_hot(labels, classes):
    return torch.cat([labels == number for number in range(classes)], 1).float()


# --- the whole losses


def test_the_settings_know_the_losses():
    for name in TERMS:
        assert FinetuningSettings(loss=name).loss == name
    with pytest.raises(SelmaError, match=r"finetuning\.loss is 'hinge'; choose one of dice_ce, dice, ") as refused:
        FinetuningSettings(loss="hinge")
    assert all(name in str(refused.value) for name in TERMS)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_dice_and_cross_entropy_are_nnunets(dimensions, batch_dice, ignored):
    logits, labels = case(dimensions, ignored=ignored)
    label = IGNORED if ignored else None
    dice_arguments = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    nnunets = DC_and_CE_loss(dice_arguments, {}, ignore_label=label, dice_class=MemoryEfficientSoftDiceLoss)
    ours = loss_named("dice_ce", SHAPES[dimensions], batch_dice=batch_dice, ignore_label=label)
    assert float(ours(logits, labels)) == pytest.approx(float(nnunets(logits, labels)), abs=1e-6)


def test_dice_alone_is_nnunets():
    logits, labels = case()
    nnunets = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, False, False, 1e-5, False)
    assert torch.equal(loss_named("dice", SHAPES[3])(logits, labels), nnunets(logits, labels))


@pytest.mark.parametrize("name", TERMS)
def test_a_loss_is_the_weighted_sum_of_its_terms(name):
    logits, labels = case()
    alone = {
        "dice": loss_named("dice", SHAPES[3])(logits, labels),
        "cross_entropy": torch.nn.functional.cross_entropy(logits, labels[:, 0].long()),
        "focal": focal(output_of(logits, labels)),
        "boundary": boundary(output_of(logits, labels), SHAPES[3]),
        "cldice": cldice(output_of(logits, labels), logits.shape[2:]),
    }
    expected = sum(weight * alone[term] for term, weight in TERMS[name].items())
    assert float(loss_named(name, SHAPES[3])(logits, labels)) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_predictions_at_ignored_voxels_count_nothing(name, dimensions):
    logits, labels = case(dimensions, ignored=0.3)
    loss = loss_named(name, SHAPES[dimensions], ignore_label=IGNORED)
    changed = torch.where(labels == IGNORED, 50 * torch.randn(logits.shape), logits).requires_grad_()
    value = loss(changed, labels)
    assert torch.equal(value, loss(logits, labels))
    value.backward()
    assert changed.grad.abs().sum() > 0
    assert changed.grad[(labels == IGNORED).expand_as(changed)].abs().max() == 0


@pytest.mark.parametrize("name", TERMS)
def test_without_ignored_voxels_the_ignore_label_changes_nothing(name):
    logits, labels = case()
    values = [loss_named(name, SHAPES[3], ignore_label=label)(logits, labels) for label in (None, IGNORED)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("label", [0, 1, IGNORED])
def test_empty_full_and_unknown_truth_have_finite_gradients(name, label):
    logits, labels = case(classes=2)
    logits.requires_grad_()
    value = loss_named(name, SHAPES[3], ignore_label=IGNORED)(logits, torch.full_like(labels, label))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().max() == 0) == (label == IGNORED)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, kind):
    logits, labels = case()
    half = (logits * 2000).to(kind).requires_grad_()
    loss = loss_named(name, SHAPES[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert half.grad.isfinite().all()
    assert torch.equal(value, loss(half.float(), labels))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_deep_supervision_weights_the_outputs(name, dimensions):
    space = SHAPES[dimensions]
    loss = loss_named(name, space, spacing=(3.0, 1.0, 1.0)[-dimensions:])
    logits, labels = case(dimensions)
    coarse = tuple(slice(None, None, 2) for _ in space)
    outputs, targets = [logits, logits[(..., *coarse)]], [labels, labels[(..., *coarse)]]
    expected = 2 / 3 * loss(outputs[0], targets[0]) + 1 / 3 * loss(outputs[1], targets[1])
    torch.testing.assert_close(DeepSupervisionWrapper(loss, (2 / 3, 1 / 3))(outputs, targets), expected)


@pytest.mark.parametrize("name", TERMS)
def test_descending_the_loss_finds_the_truth(name):
    _, labels = case(classes=2, batch=1)
    logits = torch.zeros(1, 2, *SHAPES[3], requires_grad=True)
    loss, optimizer = loss_named(name, SHAPES[3]), torch.optim.Adam([logits], 0.3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    assert (logits.argmax(1) == labels[:, 0]).float().mean() > 0.98


# --- focal


def test_focal_of_two_voxels_by_hand():
    # the true class has probability 0.8 and 0.25
    probabilities = torch.tensor([[0.2, 0.25], [0.8, 0.75]])[None, :, :, None]  # (batch, class, y, x)
    labels = torch.tensor([1, 0])[None, None, :, None]
    by_hand = (0.2**2 * 0.22314355 + 0.75**2 * 1.38629436) / 2
    assert float(focal(output_of(probabilities.log(), labels))) == pytest.approx(by_hand, rel=1e-6)
    known = torch.tensor([True, False])[None, None, :, None]
    alone = focal(output_of(probabilities.log(), labels, known))
    assert float(alone) == pytest.approx(0.2**2 * 0.22314355, rel=1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_focal_is_monais(dimensions, classes):
    losses = pytest.importorskip("monai.losses")
    logits, labels = case(dimensions, classes)
    monais = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)(logits, labels)
    # MONAI divides by the number of classes too
    assert float(focal(output_of(logits, labels))) == pytest.approx(classes * float(monais), rel=1e-5)


# --- boundary


@pytest.mark.parametrize(
    "edges", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (2.0, 1.5, 1.0), (1.0, 20.0, 1.0), (1.0, 1.0), (3.7, 1.0)]
)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
def test_the_distance_is_scipys_up_to_the_limit(edges, share):
    generator = torch.Generator().manual_seed(3)
    shape = (1, 2, *((25, 9, 22) if len(edges) == 3 else (40, 37)))
    voxels = torch.rand(shape, generator=generator) < share
    ours = distance_to(voxels, edges, 6.0)
    for channel in range(2):
        expected = torch.full(shape[2:], 6.0, dtype=torch.float64)
        if voxels[0, channel].any():
            exact = torch.from_numpy(ndimage.distance_transform_edt(~voxels[0, channel].numpy(), sampling=edges))
            expected = exact.clamp(max=6.0)
        torch.testing.assert_close(ours[0, channel].double(), expected, rtol=1e-6, atol=1e-6)


def test_signed_distances_of_a_row_by_hand():
    inside = torch.tensor([[[[False, False, False, True, True, True, True, False]]]])
    expected = torch.tensor([[[[3.0, 2.0, 1.0, 0.0, -1.0, -1.0, 0.0, 1.0]]]])
    assert torch.equal(signed_distance(inside, ~inside, (1.0, 1.0), 16.0), expected)
    assert torch.equal(signed_distance(inside, ~inside, (1.0, 1.0), 2.0), expected.clamp(max=2.0))


def test_what_is_unknown_is_no_boundary():
    inside = torch.tensor([[[[True, True, True, False, False, False]]]])
    outside = torch.tensor([[[[False, False, False, False, False, True]]]])
    expected = torch.tensor([[[[-4.0, -3.0, -2.0, 0.0, 0.0, 3.0]]]])
    assert torch.equal(signed_distance(inside, outside, (1.0, 1.0), 16.0), expected)


def test_a_mask_without_a_boundary_has_no_distances():
    inside = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    inside[0, 0], inside[1, 1, 0, 0] = True, True
    distance = signed_distance(inside, ~inside, (1.0, 1.0), 16.0)
    assert distance[0].abs().max() == distance[1, 0].abs().max() == 0
    assert float(distance[1, 1].max()) == pytest.approx(18**0.5)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_boundary_is_monais(dimensions, classes):
    losses = pytest.importorskip("monai.losses.boundary_loss", exc_type=ImportError)
    logits, labels = case(dimensions, classes)
    labels[1] = 0  # a sample without foreground
    monais = losses.BoundaryLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, labels)
    ours = boundary(output_of(logits, labels), SHAPES[dimensions])
    assert float(ours) == pytest.approx(float(monais), rel=1e-5)


def test_boundary_knows_the_voxel_of_every_output():
    """Thick slices: the finest output has voxels of 4×1×1; where y and x are halved twice they are cubes."""
    logits, labels = case()
    z, y, x = SHAPES[3]
    fine = boundary(output_of(logits, labels), (4 * z, y, x))
    inside = one_hot(labels, 3)[:, 1:].bool()
    expected = (logits.softmax(1)[:, 1:] * signed_distance(inside, ~inside, (4.0, 1.0, 1.0), 16.0)).mean()
    torch.testing.assert_close(fine, expected)
    coarse = boundary(output_of(logits[..., ::4, ::4], labels[..., ::4, ::4]), (4 * z, 12, 12))
    inside = inside[..., ::4, ::4]
    expected = (logits.softmax(1)[:, 1:, :, ::4, ::4] * signed_distance(inside, ~inside, (1.0, 1.0, 1.0), 16.0)).mean()
    torch.testing.assert_close(coarse, expected)


def test_boundary_pays_for_wrong_foreground_by_its_distance():
    labels = torch.zeros(1, 1, 9, 9, dtype=torch.long)
    labels[..., 4, 4] = 1
    certain = torch.full((1, 2, 9, 9), -30.0)
    certain[:, 0] = 30.0
    values = []
    for column in range(4, 9):
        wrong = certain.clone()
        wrong[..., 4, column] = torch.tensor([-30.0, 30.0])[None, :]
        values.append(float(boundary(output_of(wrong, labels), (9, 9))) * 81)
    assert values == pytest.approx([0, 1, 2, 3, 4], abs=1e-5)


# --- clDice


def test_the_skeleton_of_a_bar_by_hand():
    bar = torch.zeros(1, 1, 5, 9)
    bar[..., 1:4, 1:8] = 1
    expected = torch.zeros(1, 1, 5, 9)
    expected[..., 2, 2:7] = 1  # what one erosion leaves; a second leaves nothing, and opening that gives nothing back
    assert torch.equal(soft_skeleton(bar, 3), expected)
    assert soft_skeleton(bar, 0).max() == 0  # opening the bar itself gives it back


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_soft_skeleton_is_monais(dimensions, steps):
    monais = pytest.importorskip("monai.losses.cldice")
    masks = case(dimensions)[0].softmax(1)
    torch.testing.assert_close(soft_skeleton(masks, steps), monais.soft_skel(masks, steps))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_cldice_is_monais(dimensions):
    monais = pytest.importorskip("monai.losses.cldice")
    logits, labels = case(dimensions, 2)
    theirs = monais.SoftclDiceLoss(iter_=5, include_background=False)(logits.softmax(1), one_hot(labels, 2))
    # MONAI adds 1e-4 to the last denominator too
    assert float(cldice(output_of(logits, labels), logits.shape[2:])) == pytest.approx(float(theirs), abs=1e-4)


def test_cldice_sees_a_gap_in_a_vessel():
    labels = torch.zeros(1, 1, 7, 24, dtype=torch.long)
    labels[..., 2:5, 1:23] = 1
    whole, gap = labels.clone(), labels.clone()
    gap[..., 11:13] = 0
    values = [float(cldice(output_of(30 * (one_hot(found, 2) - 0.5), labels), (7, 24))) for found in (whole, gap)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[1] > 0.03


def test_cldice_is_asked_of_the_finest_output_alone():
    logits, labels = case(3, 2)
    assert float(cldice(output_of(logits, labels), [2 * edge for edge in logits.shape[2:]])) == 0


def test_a_skeleton_computed_again_has_the_same_gradient():
    masks = case(3)[0].softmax(1)[:, 1:].detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: soft_skeleton(given, 2), masks[:1, :, :4, :4, :4])


@pytest.mark.parametrize("classes", [2, 4])
def test_no_loss_keeps_much_beside_the_network(classes):
    """nnU-Net's own step at features 32 to 256 keeps about 2000 bytes a voxel of the patch in half precision, at batch 2."""
    edge = 16
    labels = (torch.rand(2, 1, edge, edge, edge) < 0.1).long()
    kept = {}
    for name in TERMS:
        logits = torch.randn(2, classes, edge, edge, edge, requires_grad=True)
        loss = loss_named(name, (edge,) * 3)
        kept[name] = saved_bytes(lambda loss=loss, logits=logits: loss(logits, labels)) / edge**3
    assert max(kept.values()) - kept["dice_ce"] < 0.2 * (2000 + kept["dice_ce"])


@pytest.mark.parametrize(("name", "most"), [("dice_ce", 30), ("dice_focal_boundary", 160), ("dice_ce_cldice", 260)])
def test_a_loss_starts_few_kernels(name, most):
    loss = loss_named(name, (32,) * 3)
    assert calls(lambda: loss(torch.randn(2, 2, 32, 32, 32), torch.zeros(2, 1, 32, 32, 32))) <= most
