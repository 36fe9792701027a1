"""One brain with two stains, in each format that microscopes leave: identical tiles, labels and tables, by the commands that users type."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_selma import cli
from nnunet_selma.conversion.inspection import as_text, inspect
from nnunet_selma.demo.phantom import draw
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import inventory, open_volume
from tests.plans import plans
from tests.prediction.models import write_model
from tests.volumes.brains import BRAINS, LEVELS, write_brain

SHAPE = (72, 80, 96)
SPACING = (4.0, 2.0, 2.0)
NAMES = ("WGA", "EB")


@pytest.fixture(scope="module")
def brain():
    phantom = draw("blood_vessel", SHAPE, np.random.default_rng(3), outside=0.3)
    return [phantom.image, phantom.second_channel]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    content = plans()
    next(iter(content["configurations"].values()))["spacing"] = list(SPACING)
    folder = tmp_path_factory.mktemp("model") / "model"
    write_model(folder, content, channels=2)
    return folder


@pytest.fixture(scope="module")
def results(brain, model, tmp_path_factory):
    """Format to what the commands make of the brain in it; made when it is asked for."""
    made: dict[str, dict] = {}

    def results_of(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            made[kind] = commands(write_brain(kind, root / "brain", brain, SPACING, NAMES), root, model)
        return made[kind]

    return results_of


def commands(path, root, model):
    """Tiles, labels and the table of objects of a brain."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))
        run(
            "convert",
            "unannotated",
            path.parent,
            "-d",
            500,
            "--stains",
            "header",
            "--tile",
            32,
            "--tiles-per-volume",
            3,
        )
    out, table = root / "out.ome.zarr", root / "objects.csv"
    run("predict-volume", path, "-o", out, "-m", model, "-f", 0, "--block", 64, "--device", "cpu")
    run("objects", out, "--raw", path, "--channel", 1, "-o", table)
    (dataset,) = (root / "raw").iterdir()
    return {
        "path": path,
        "channels": read_json(dataset / "dataset.json")["channel_names"],
        "tiles": {p.name: sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in sorted((dataset / "imagesTr").iterdir())},
        "spacing": {sitk.ReadImage(p).GetSpacing() for p in (dataset / "imagesTr").iterdir()},
        "image": [open_volume(out, channel=channel).read() for channel in range(2)],
        "labels": open_volume(out / "labels" / "segmentation").read(),
        "table": list(csv.reader(table.open(encoding="utf-8"))),
    }


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", BRAINS)
def test_one_brain_in_every_format_gives_the_same(kind, results, brain):
    expected, made = results("OME-Zarr"), results(kind)
    assert made["channels"] == {"0": "WGA", "1": "EB"}
    assert len(made["tiles"]) == 6
    assert made["tiles"].keys() == expected["tiles"].keys()
    for name, tile in made["tiles"].items():
        np.testing.assert_array_equal(tile, expected["tiles"][name])
    assert made["spacing"] == expected["spacing"]
    np.testing.assert_array_equal(made["image"], brain)
    assert 0 < np.count_nonzero(expected["labels"]) < expected["labels"].size
    np.testing.assert_array_equal(made["labels"], expected["labels"])
    assert len(expected["table"]) > 3
    assert made["table"] == expected["table"]


@pytest.mark.parametrize("kind", BRAINS)
def test_what_a_brain_holds_is_the_same_in_every_format(kind, brain, tmp_path):
    path = write_brain(kind, tmp_path / "brain", brain, SPACING, NAMES)
    held = inventory(path)
    assert (held.channels, held.channel_names, held.times) == (2, NAMES, 1)
    assert held.levels == (1 if kind in ("OME-TIFF", "CZI") else LEVELS)
    for channel, expected in enumerate(brain):
        volume = open_volume(path, channel=channel)
        assert volume.spacing_um_zyx == pytest.approx(SPACING, abs=1e-6)
        assert volume.dtype == np.uint16
        np.testing.assert_array_equal(
            volume.read(slice(5, 50), slice(7, 70), slice(11, 90)), expected[5:50, 7:70, 11:90]
        )
    page = as_text(inspect(path.parent))
    assert "2 channels (WGA, EB)" in page
    assert "72×80×96 of 4×2×2 µm" in page
