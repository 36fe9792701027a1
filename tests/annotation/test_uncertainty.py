"""Entropy and labels of a model on boxes, against stock nnU-Net and against the files of predict-volume."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_selma.annotation.brains import open_brains
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.annotation.uncertainty import Answer, ModelPrediction, StoredPrediction, entropy, first_answer
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.model import ModelSettings
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import pointwise_plans, stock, texture, write_model

SHAPE = (24, 28, 33)
WHOLE = tuple(slice(0, n) for n in SHAPE)
BOX = (slice(2, 20), slice(5, 23), slice(9, 30))


def opened(path):
    ((brain,), _) = open_brains([path], ProposalSettings(spacing_um_zyx=(1.0, 1.0, 1.0)))
    return brain


@pytest.fixture
def brain(tmp_path, rng):
    return opened(write_image(tmp_path / "mouse.nii.gz", texture(rng, SHAPE)[0]))


def surprise(probabilities):
    """Entropy in nats by the definition, voxel by voxel."""
    flat = probabilities.reshape(len(probabilities), -1).T.astype(float)
    values = [-sum(p * np.log(p) for p in voxel if p > 0) for voxel in flat]
    return np.reshape(values, probabilities.shape[1:])


def test_entropy_by_its_definition(rng):
    exclusive = rng.dirichlet([0.3] * 3, (4, 5)).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(entropy(exclusive, overlapping=False), surprise(exclusive), atol=1e-5)
    regions = np.array([[[0.0, 0.5]], [[1.0, 0.5]]], np.float32)
    np.testing.assert_allclose(entropy(regions, overlapping=True), [[0.0, np.log(2)]], atol=1e-6)


LABELS = {"background": 0, "cell": 1, "vessel": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (plans(), {"labels": LABELS}),
        (pointwise_plans(1.5), {"labels": LABELS}),
        (plans(), {"labels": REGIONS, "regions_order": [1, 2]}),
        (plans(), {"labels": LABELS, "folds": 2}),
    ],
    ids=["classes", "resampled", "regions", "folds"],
)
def test_a_box_that_is_the_brain_is_predicted_as_by_stock_nnunet(content, more, brain, tmp_path):
    settings = write_model(tmp_path / "model", content, **more)
    answer = first_answer(ModelPrediction(settings, "cpu"), brain, WHOLE)
    labels, probabilities = stock(settings, brain.read(WHOLE), (1.0, 1.0, 1.0), probabilities=True)
    expected = surprise(probabilities)
    if "regions_order" in more:
        expected = np.mean([surprise(np.stack([p, 1 - p])) for p in probabilities], axis=0)
    assert np.mean(answer.labels == labels) > 0.999
    np.testing.assert_allclose(answer.entropy, expected, atol=5e-3)
    assert answer.entropy.std() > 0.003


def test_a_box_smaller_than_the_patch_is_predicted_in_its_surroundings(brain, tmp_path):
    """A network of 1×1×1 convolutions without a norm over space gives every voxel the same answer, whatever the box."""
    content = pointwise_plans(1.0)
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {"norm_op": None, "norm_op_kwargs": None}
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] = [[1] * 3] * 3
    prediction = ModelPrediction(write_model(tmp_path / "model", content, labels=LABELS), "cpu")
    whole, part = (first_answer(prediction, brain, box) for box in (WHOLE, BOX))
    assert part.labels.shape == tuple(b.stop - b.start for b in BOX)
    assert np.mean(part.labels == whole.labels[BOX]) > 0.99
    np.testing.assert_allclose(part.entropy, whole.entropy[BOX], atol=0.002)  # sums in half precision


def test_scores_are_the_entropy_on_each_class_per_voxel_of_the_box():
    labels = np.array([[[0, 1], [1, 2]]], np.uint8)
    answer = Answer(labels, np.array([[[0.1, 0.2], [0.4, 0.6]]], np.float32))
    scores = answer.scores({1: "cell", 2: "vessel", 3: "nucleus"})
    assert scores == pytest.approx({"cell": 0.15, "vessel": 0.15, "nucleus": 0, "background": 0.025})
    assert list(scores) == ["cell", "vessel", "nucleus", "background"]


@pytest.mark.parametrize("regions", [False, True])
def test_files_of_predict_volume_give_the_same_as_the_model(regions, brain, tmp_path):
    more = {"labels": REGIONS, "regions_order": [1, 2]} if regions else {"labels": LABELS}
    model = write_model(tmp_path / "model", **more)
    settings = VolumePrediction(
        inputs=(brain.path,),
        output=tmp_path / "out.ome.zarr",
        model=model,
        spacing_um_zyx=(1.0, 1.0, 1.0),
        probabilities=True,
        tissue_only=False,
    )
    predict_volume(settings, Execution(device="cpu"))
    stored = StoredPrediction({brain.name: tmp_path / "out_probabilities.ome.zarr"})
    computed = ModelPrediction(model, "cpu")
    assert stored.fingerprint == computed.fingerprint
    assert stored.classes(brain) == computed.classes(brain)
    from_files = first_answer(stored, brain, BOX)
    from_model = first_answer(computed, brain, WHOLE)
    np.testing.assert_array_equal(from_files.labels, from_model.labels[BOX])
    np.testing.assert_allclose(from_files.entropy, from_model.entropy[BOX], atol=0.02)  # a step of 1/255


def test_classes_of_a_file_overlap_in_all_boxes_or_in_none(brain, monkeypatch):
    """The same voxels have the same entropy, whether another box of the request shows the overlap or not."""
    first, second = np.full((2, *SHAPE), 64, np.uint8)
    first[12:], second[12:] = 250, 200
    boxes = [(slice(a, a + 6), slice(0, 7), slice(0, 8)) for a in (0, 6, 12)]
    volumes = [SimpleNamespace(read=lambda *box, voxels=voxels: voxels[box]) for voxels in (first, second)]
    labels = SimpleNamespace(read=lambda *box: np.ones(SHAPE, np.uint8)[box])
    monkeypatch.setattr(StoredPrediction, "_opened", lambda *_: (volumes, labels))
    prediction = object.__new__(StoredPrediction)
    prediction._files = {brain.name: brain.path}
    p = 64 / 255
    apart = -2 * p * np.log(p) - (1 - 2 * p) * np.log(1 - 2 * p)
    together = -p * np.log(p) - (1 - p) * np.log(1 - p)
    for chosen, expected in ((boxes[:2], apart), (boxes, together)):
        entropies = [answer.entropy for _, answer in prediction.answers(brain, chosen)]
        np.testing.assert_allclose(entropies[:2], expected, rtol=1e-5)


def test_what_cannot_be_used_is_named(brain, tmp_path, rng):
    (tmp_path / "out.ome.zarr").mkdir()
    with pytest.raises(SelmaError, match="is not named as predict-volume"):
        StoredPrediction({brain.name: tmp_path / "out.ome.zarr"})
    with pytest.raises(SelmaError, match="with the labels is not beside it"):
        StoredPrediction({brain.name: tmp_path / "other_probabilities.ome.zarr"})
    two = write_model(tmp_path / "two", channels=2)
    with pytest.raises(SelmaError, match="trained on 2 channels, and 1 channel came"):
        first_answer(ModelPrediction(two, "cpu"), brain, BOX)
    with pytest.raises(SelmaError):
        ModelPrediction(ModelSettings(folder=tmp_path / "none", folds=("0",)), "cpu")
