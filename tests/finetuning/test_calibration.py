"""Decision thresholds: fitted against brute force, folded into the bias of the head, and read off a trainer's cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning import calibration
from nnunet_selma.finetuning.calibration import TOLERANCE, Calibration, Sample, fit, sample_of, samples_of, shift_heads
from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer
from tests.plans import network, plans
from tests.trainers.test_trainers import trainer

GRID = np.arange(-160, 161) / 20


def cases(seed, *, classes=2, number=3, bias=2.0, voxels=4000, rare=0.05):
    """Cases whose foreground logits are too high by a constant."""
    rng = np.random.default_rng(seed)
    share = [1 - rare * (classes - 1), *[rare] * (classes - 1)]
    samples = []
    for case in range(number):
        labels = rng.choice(classes, voxels, p=share)
        logits = rng.normal(0, 1, (classes, voxels))
        logits[labels, np.arange(voxels)] += 2
        logits[1:] += bias
        samples.append(Sample(f"case_{case}", torch.from_numpy(logits).float(), torch.from_numpy(labels)))
    return samples


def dice(marked, truth):
    return 2 * (marked & truth).sum() / (marked.sum() + truth.sum())


def nearest(scores):
    """Of the offsets close to the best the nearest to 0."""
    close = [place for place, score in enumerate(scores) if score >= max(scores) - TOLERANCE]
    return min(close, key=lambda place: (abs(GRID[place]), -scores[place]))


def brute_force(margins, truths):
    """Mean Dice for each offset of the grid, voxel by voxel, over the cases that show the class."""
    pairs = [(margin, truth) for margin, truth in zip(margins, truths, strict=True) if truth.any()]
    return [np.mean([dice(margin + offset > 0, truth) for margin, truth in pairs]) for offset in GRID]


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_class_is_fitted_as_brute_force_does(bias, dtype):
    samples = cases(1, bias=bias)
    samples = [Sample(s.name, s.logits.to(dtype), s.labels) for s in samples]
    samples.append(Sample("empty", samples[0].logits, torch.zeros_like(samples[0].labels)))
    result = fit(samples)
    logits = [s.logits.double().numpy() for s in samples]
    scores = brute_force([x[1] - x[0] for x in logits], [s.labels.numpy() == 1 for s in samples])
    best = nearest(scores)
    assert result.offsets == (0.0, pytest.approx(GRID[best]))
    assert result.dice_before == pytest.approx(scores[160])
    assert result.dice_after == pytest.approx(scores[best])
    assert result.cases == ("case_0", "case_1", "case_2", "empty")


def test_offsets_undo_a_constant_and_stay_where_nothing_is_gained():
    moved = fit(cases(2, bias=4.0, voxels=40_000, rare=0.4))
    assert moved.offsets[1] == pytest.approx(-4, abs=1)
    assert moved.dice_after > moved.dice_before + 0.05
    shifted = [
        Sample(s.name, s.logits + torch.tensor(moved.offsets)[:, None], s.labels)
        for s in cases(2, bias=4.0, voxels=40_000, rare=0.4)
    ]
    assert fit(shifted).dice_after <= moved.dice_after + TOLERANCE + 1e-9
    separated = torch.tensor([[0.0, 0.0], [-3.0, 3.0]])
    assert fit([Sample("a", separated, torch.tensor([0, 1]))]).offsets == (0.0, 0.0)


@hypothesis_settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 4),
    number=st.integers(1, 3),
    voxels=st.integers(1, 40),
    bias=st.floats(-5, 5),
    coarse=st.booleans(),
    kind=st.sampled_from(["labels", "regions", "ordered regions"]),
)
def test_the_dice_never_falls(seed, classes, number, voxels, bias, coarse, kind):
    samples = cases(seed, classes=classes, number=number, voxels=voxels, bias=bias, rare=0.2)
    if coarse:  # ties
        samples = [Sample(s.name, s.logits.round(), s.labels) for s in samples]
    regions = None if kind == "labels" else [tuple(range(label, classes)) for label in range(classes)]
    result = fit(samples, regions, list(range(classes)) if kind == "ordered regions" else None)
    assert len(result.offsets) == classes
    assert kind != "labels" or result.offsets[0] == 0
    if math.isnan(result.dice_before):
        assert not any(result.offsets)
    else:
        assert 0 <= result.dice_before <= 1
        assert result.dice_after >= result.dice_before - 1e-9
    json.dumps(result.as_json(), allow_nan=False)
    assert result.sentence().endswith(".")


def test_each_region_is_fitted_by_itself():
    samples = [Sample(s.name, s.logits[1:], s.labels) for s in cases(3, classes=4, bias=-1.0)]
    regions = [(1, 2, 3), (2, 3), 3]
    result = fit(samples, regions)
    masks = [np.isin(np.arange(4), region) for region in regions]
    curves = [
        brute_force([s.logits[channel].double().numpy() for s in samples], [mask[s.labels.numpy()] for s in samples])
        for channel, mask in enumerate(masks)
    ]
    places = [nearest(curve) for curve in curves]
    assert result.offsets == tuple(pytest.approx(GRID[place]) for place in places)
    assert result.dice_before == pytest.approx(np.mean([curve[160] for curve in curves]))
    assert result.dice_after == pytest.approx(
        np.mean([curve[place] for curve, place in zip(curves, places, strict=True)])
    )
    assert result.thresholds == tuple(pytest.approx(1 / (1 + np.exp(GRID[place]))) for place in places)


def test_with_an_order_the_dice_is_that_of_the_label_map():
    sample = Sample("a", torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]), torch.tensor([1, 2, 0]))
    # the map is 1, 2, 2: the third voxel is written by the second channel alone, and lies in both regions
    assert fit([sample], [(1, 2), 2], [1, 2]).dice_before == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert fit([sample], [(1, 2), 2]).dice_before == pytest.approx((1 + 2 / 3) / 2)


def test_several_classes_get_better_together():
    samples = cases(4, classes=4, bias=3.0)
    result = fit(samples)

    def mean(offsets):
        per_class = []
        for label in (1, 2, 3):
            pairs = [
                ((s.logits.double() + torch.tensor(offsets).double()[:, None]).argmax(0), s.labels) for s in samples
            ]
            per_class.append(np.mean([dice((p == label).numpy(), (t == label).numpy()) for p, t in pairs]))
        return np.mean(per_class)

    assert result.dice_before == pytest.approx(mean((0.0,) * 4))
    assert result.dice_after == pytest.approx(mean(result.offsets))
    assert result.dice_after > result.dice_before + 0.05
    assert result.offsets[0] == 0
    assert result.thresholds == ()


def test_the_curve_of_several_classes_is_that_of_brute_force():
    (sample,) = cases(5, classes=3, number=1, voxels=300, rare=0.3)
    grid = torch.arange(-8, 9, dtype=torch.float64) / 2
    curve = calibration._curve([(sample.logits.double(), sample.labels)], 2, grid)
    for offset, value in zip(grid, curve, strict=True):
        logits = sample.logits.double() + torch.tensor([0.0, 0.0, offset])[:, None]
        scores = [dice((logits.argmax(0) == c).numpy(), (sample.labels == c).numpy()) for c in (1, 2)]
        assert float(value) == pytest.approx(np.mean(scores))


def test_a_class_that_no_case_shows_is_not_shifted():
    samples = [Sample(s.name, s.logits, s.labels.where(s.labels != 2, 0)) for s in cases(6, classes=3, bias=3.0)]
    assert fit(samples).offsets[2] == 0
    assert fit([Sample(s.name, s.logits[1:], s.labels) for s in samples], [1, 2]).offsets[1] == 0


def test_without_foreground_nothing_is_shifted():
    samples = [Sample(s.name, s.logits, torch.zeros_like(s.labels)) for s in cases(7)]
    for result in (fit(samples), fit(samples, [1, 2])):
        assert result.offsets == (0.0, 0.0)
        assert math.isnan(result.dice_before)
        assert "no foreground is shown in 3 cases" in result.sentence()
        assert result.as_json()["dice_after"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_end_with_a_sentence(value):
    first, second = cases(8, number=2)
    second.logits[1, 5] = value
    with pytest.raises(SelmaError, match=r"case_1: .* not finite"):
        fit([first, second])


def test_no_case_ends_with_a_sentence():
    with pytest.raises(SelmaError, match="no case to fit"):
        fit([])


def test_the_sentence_says_what_is_moved():
    result = Calibration((0.0, -2.0), 0.5, 0.6, ("a",))
    assert result.sentence() == (
        "The decision threshold is moved by adding 0, -2.00 to the logits (a probability above 0.881 in place of 0.5): "
        "Dice 0.500 before, 0.600 after, in 1 case."
    )
    assert "a probability" not in Calibration((0.0, -2.0, 1.0), 0.5, 0.6, ("a",)).sentence()
    assert "stays as it is: Dice 0.500 in 2 cases" in Calibration((0.0, 0.0), 0.5, 0.5, ("a", "b")).sentence()


def test_voxels_with_the_ignore_label_are_left_out():
    labels = torch.tensor([[[0, 1, 2], [-1, 2, 1]]], dtype=torch.int8)
    logits = torch.arange(12.0).view(2, 1, 2, 3)
    sample = sample_of("a", logits, labels, 2, torch.Generator())
    assert sample.labels.tolist() == [0, 1, 0, 1]
    assert sample.logits.tolist() == [[0, 1, 3, 5], [6, 7, 9, 11]]
    assert sample_of("a", logits, labels, None, torch.Generator()).labels.tolist() == [0, 1, 2, 0, 2, 1]
    with pytest.raises(SelmaError, match=r"a: the prediction has \[1, 2, 3\] voxels"):
        sample_of("a", logits, labels[:, :1], None, torch.Generator())


@pytest.mark.parametrize("ignore", [None, 3])
def test_a_large_case_is_drawn_from_evenly(ignore, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_VOXELS", 500)
    labels = torch.arange(4000).view(10, 20, 20) % (4 if ignore else 3)
    logits = torch.arange(4000.0).view(1, 10, 20, 20)
    sample = sample_of("a", logits, labels, ignore, torch.Generator().manual_seed(0))
    drawn = sample.logits[0].long()
    assert 480 < len(drawn) <= 500
    assert len(drawn.unique()) == len(drawn)
    assert torch.equal(labels.flatten()[drawn], sample.labels.long())
    assert ignore not in sample.labels.tolist()
    assert torch.histc(drawn.float(), 10, 0, 4000).min() > 40
    assert torch.bincount(sample.labels.long()).min() > 120
    again = sample_of("a", logits, labels, ignore, torch.Generator().manual_seed(0))
    assert torch.equal(sample.logits, again.logits)


def net():
    torch.manual_seed(0)
    return network(plans(), pretraining=False)


def test_a_shifted_network_marks_where_the_probability_is_above_the_threshold():
    model, image = net().eval(), torch.randn(1, 1, 16, 16, 16)
    model.decoder.deep_supervision = False
    with torch.no_grad():
        probability = model(image).softmax(1)[:, 1]
        offset = float(torch.logit(1 - probability.quantile(0.8)))
        shift_heads(model, (0.0, offset))
        marked = model(image).argmax(1)
    clear = (probability - 1 / (1 + math.exp(offset))).abs() > 1e-5
    assert torch.equal(marked.bool()[clear], (probability > 1 / (1 + math.exp(offset)))[clear])
    assert 0.15 < marked.float().mean() < 0.25


def test_only_the_finest_head_is_shifted():
    model, image = net().eval(), torch.randn(1, 1, 16, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = model(image)
    shift_heads(model, (0.0, 1.5))
    shifted = model(image)
    change = torch.tensor([0.0, 1.5]).view(1, 2, 1, 1, 1).expand_as(outputs[0])
    torch.testing.assert_close(shifted[0] - outputs[0], change)
    assert all(torch.equal(a, b) for a, b in zip(shifted[1:], outputs[1:], strict=True))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"decoder.seg_layers.{len(model.decoder.seg_layers) - 1}.bias"}
    assert model.decoder.seg_layers[-1].bias.requires_grad


def test_heads_that_cannot_be_shifted_end_with_a_sentence():
    with pytest.raises(SelmaError, match="Linear has no heads in decoder"):
        shift_heads(torch.nn.Linear(1, 1), (0.0,))
    model = net()
    with pytest.raises(SelmaError, match="2 channels, and there are 3 offsets"):
        shift_heads(model, (0.0, 1.0, 2.0))
    model.decoder.seg_layers[-1].register_parameter("bias", None)
    with pytest.raises(SelmaError, match="has no bias"):
        shift_heads(model, (0.0, 1.0))


@pytest.fixture
def ready(folders, rng):
    """A trainer of fold `all` with preprocessed cases."""
    given_trainer = trainer(SelmaFinetuneTrainer, folders, finetuning={"pretrained": "none", "seed": 1})
    folder = Path(given_trainer.preprocessed_dataset_folder)
    (folder / "a.b2nd").unlink()
    for name in "cabd":
        data = rng.normal(size=(1, 20, 16, 24)).astype(np.float32)
        labels = (data > 1).astype(np.int8)
        labels[:, 0] = -1
        nnUNetDatasetBlosc2.save_case(data, labels, {}, str(folder / name), chunks=data.shape, blocks=data.shape)
    given_trainer.fold = "all"
    given_trainer.initialize()
    return given_trainer


def test_samples_are_what_the_network_predicts(ready):
    ready.network.train()
    samples = samples_of(ready)
    assert [s.name for s in samples] == ["a", "b", "c", "d"]
    assert all(s.logits.shape == (2, 20 * 16 * 24) for s in samples)
    assert ready.network.training
    assert ready.network.decoder.deep_supervision
    result = fit(samples)
    shift_heads(ready.network, (0.0, 1.5))
    change = samples_of(ready)[2].logits.float() - samples[2].logits.float()
    # at the corners nnU-Net divides half-precision numbers that are next to 0 by such weights
    assert ((change[1] - 1.5).abs() < 0.02).float().mean() > 0.95
    assert (change[0].abs() < 0.02).float().mean() > 0.95
    assert result.dice_after >= result.dice_before


def test_many_cases_are_thinned_out_evenly(ready):
    assert [s.name for s in samples_of(ready, most_cases=2)] == ["a", "d"]


def test_a_failed_prediction_leaves_the_network_as_it_was(ready, monkeypatch):
    ready.network.train()
    monkeypatch.setattr(calibration, "sample_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        samples_of(ready)
    assert ready.network.training
    assert ready.network.decoder.deep_supervision


def test_a_cascaded_stage_is_refused_with_a_sentence(ready):
    ready.is_cascaded = True
    with pytest.raises(SelmaError, match="second stage of a cascade"):
        samples_of(ready)


def test_several_processes_share_the_cases(ready, monkeypatch):
    whole = [sample.name for sample in samples_of(ready)]
    ready.is_ddp = True
    # nnU-Net's looks for the wrapper of DistributedDataParallel
    ready.set_deep_supervision_enabled = lambda enabled: setattr(ready.network.decoder, "deep_supervision", enabled)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append([sample.name for sample in samples_of(ready)])
    assert sorted(shares[0] + shares[1]) == sorted(whole)
    assert not set(shares[0]) & set(shares[1])
