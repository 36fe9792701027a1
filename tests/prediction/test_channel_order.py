"""The channels of a file are those of the model by name, or by their order, and which is said."""

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.channel_order import resolve_channels
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from tests.prediction.models import pointwise_plans, texture, write_model
from tests.volumes.microscope_files import write_imaris

SHAPE = (32, 33, 34)


def write_folder(folder, names):
    """A model folder with a dataset.json and an empty checkpoint."""
    (folder / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "fold_0/checkpoint_final.pth"):
        (folder / name).write_text("{}")
    write_json(folder / "dataset.json", {"channel_names": {str(i): name for i, name in enumerate(names)}})
    return ModelSettings(folder=folder, folds=("0",))


def resolved(tmp_path, in_file, in_model, count=None, channels=None):
    images = [np.full((3, 4, 5), number, np.uint8) for number in range(count or len(in_file))]
    path = write_imaris(tmp_path / "b.ims", images, spacing_um_zyx=(2.0, 2.0, 2.0), levels=1, names=in_file or None)
    model = write_folder(tmp_path / "model", in_model)
    settings = VolumePrediction(inputs=(path,), output=tmp_path / "o.ome.zarr", model=model, channels=channels)
    return resolve_channels(settings).channels


@pytest.mark.parametrize(
    ("in_file", "in_model", "expected"),
    [
        (("EB", "WGA"), ("WGA", "EB"), (1, 0)),
        (("wga", "eb"), ("WGA", "EB"), (0, 1)),
        (("EB", "DAPI", "WGA"), ("WGA", "EB"), (2, 0)),
        (("GFP", "cFos"), ("cfos",), (1,)),
        (("a", "b"), ("stain 0", "stain 1"), (0, 1)),
    ],
)
def test_names_decide_and_without_a_common_name_the_order_of_the_file(in_file, in_model, expected, tmp_path):
    assert resolved(tmp_path, in_file, in_model) == expected


@pytest.mark.parametrize(
    ("in_file", "count", "in_model", "sentence"),
    [
        (
            ("EB", "DAPI", "GFP"),
            3,
            ("WGA", "EB"),
            r"3 channels \(EB, DAPI, GFP\).*on 2 \(WGA, EB\); choose .* --channel",
        ),
        (("EB", "488"), 2, ("WGA", "EB"), "choose those of the file with --channel"),
        ((), 2, ("light sheet",), "has 2 channels, and the model was trained on 1 .*--channel"),
        ((), 2, ("a", "b", "c"), "has 2 channels, and the model was trained on 3 .*; give one volume for each"),
    ],
)
def test_what_the_names_do_not_decide_is_asked(in_file, count, in_model, sentence, tmp_path):
    with pytest.raises(SelmaError, match=sentence):
        resolved(tmp_path, in_file, in_model, count)


def test_channels_that_the_user_chooses_are_taken(tmp_path):
    assert resolved(tmp_path, ("EB", "DAPI", "WGA"), ("WGA", "EB"), channels=(0, 1)) == (0, 1)


def test_a_prediction_takes_the_channels_by_name_and_says_so(tmp_path, rng):
    first, second = texture(rng, SHAPE, channels=2)
    settings = write_model(tmp_path / "model", pointwise_plans(2.0), channels=2)
    description = read_json(settings.folder / "dataset.json") | {"channel_names": {"0": "WGA", "1": "EB"}}
    write_json(settings.folder / "dataset.json", description)
    labels = []
    for name, images, names, line in (
        ("turned", [second, first], ("EB", "WGA"), "channels: 1 (WGA) as WGA, 0 (EB) as EB"),
        ("order", [first, second], ("a", "b"), "channels: 0 (a) as WGA, 1 (b) as EB"),
        ("bare", [first, second], None, "channels: 0 as WGA, 1 as EB"),
    ):
        path = write_imaris(tmp_path / f"{name}.ims", images, spacing_um_zyx=(2.0, 2.0, 2.0), levels=1, names=names)
        prediction = VolumePrediction(inputs=(path,), output=tmp_path / f"{name}.ome.zarr", model=settings, block=32)
        said = []
        predict_volume(prediction, Execution(), say=said.append)
        assert line in said
        for channel, image in enumerate((first, second)):
            np.testing.assert_array_equal(open_volume(prediction.output, channel=channel).read(), image)
        labels.append(open_volume(prediction.output / "labels" / "segmentation").read())
        again = []
        predict_volume(prediction, Execution(), say=again.append)
        assert "is complete already" in again[0]
    assert labels[0].any()
    assert all(np.array_equal(one, labels[0]) for one in labels)
