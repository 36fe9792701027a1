import json

import numpy as np
import pytest

from nnunet_selma.conversion.tiles import TileSettings
from nnunet_selma.conversion.unannotated import StoreSettings, UnannotatedSettings, convert_unannotated
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.settings import with_settings
from nnunet_selma.nnunet.tile_store import TileStore
from nnunet_selma.running.json_files import read_json, write_json
from tests.conftest import write_image
from tests.plans import plans

SETTINGS = UnannotatedSettings(structure="microglia", spacing="voxel", tiles=TileSettings(tile=16, per_volume=3))
STORE = StoreSettings(plans_from=510)
IDENTIFIER = "nnUNetPlans_from510_store_3d_fullres"


@pytest.fixture
def brain(tmp_path, rng):
    voxels = (1000 + 100 * rng.random((20, 40, 40))).astype(np.uint16)
    write_image(tmp_path / "in" / "brain.nii.gz", voxels)
    return tmp_path / "in", voxels


@pytest.fixture
def planned(folders):
    """The annotated dataset, as far as its plans are concerned."""
    folder = folders.preprocessed / "Dataset510_SELMA3D"
    folder.mkdir()
    write_json(folder / "nnUNetPlans.json", plans())
    return folders


def test_tiles_lie_in_the_store_with_everything_training_reads(brain, planned):
    source, voxels = brain
    manifest = convert_unannotated(source, SETTINGS, planned, store=STORE)
    dataset = planned.preprocessed / "Dataset500_SELMA3Dunlabelled"
    assert {p.name for p in dataset.iterdir()} == {
        IDENTIFIER,
        f"{IDENTIFIER}_selma_manifest.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "nnUNetPlans_from510_store.json",
    }
    assert not list(planned.raw.iterdir())
    store = TileStore(str(dataset / IDENTIFIER))
    assert store.identifiers == sorted(manifest["cases"])
    for name, record in manifest["cases"].items():
        data, *_ = store.load_case(name)
        z, y, x = record["start_zyx"]
        expected = voxels[z : z + 16, y : y + 16, x : x + 16]
        np.testing.assert_array_equal(data.stored[:][0], expected)
        assert record["mean"] == [pytest.approx(expected.mean())]
        assert record["standard_deviation"] == [pytest.approx(expected.std())]
    written = read_json(dataset / "nnUNetPlans_from510_store.json")
    assert written["dataset_name"] == dataset.name
    assert list(written["configurations"]) == ["3d_fullres"]
    assert read_json(dataset / "dataset_fingerprint.json")["shapes_after_crop"] == [[16, 16, 16]] * 3


def test_two_configurations_share_a_plans_file_and_changed_settings_stay(brain, planned):
    source = planned.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans.json"
    content = read_json(source)
    flat = {"inherits_from": "3d_fullres", "patch_size": [8, 16, 16]}
    content["configurations"]["3d_flat"] = flat
    content["configurations"]["3d_cascade"] = {**flat, "previous_stage": "3d_lowres"}
    write_json(source, content)
    convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    path = planned.preprocessed / "Dataset500_SELMA3Dunlabelled" / "nnUNetPlans_from510_store.json"
    write_json(path, with_settings(read_json(path), {"pretraining": {"epochs": 7}}))
    convert_unannotated(brain[0], SETTINGS, planned, store=StoreSettings(plans_from=510, configuration="3d_flat"))
    content["configurations"]["3d_fullres"]["batch_size"] = 5  # planned anew, for the same data
    write_json(source, content)
    convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    written = read_json(path)
    assert set(written["configurations"]) == {"3d_fullres", "3d_flat"}
    assert written["configurations"]["3d_flat"]["patch_size"] == [8, 16, 16]
    assert written["configurations"]["3d_flat"]["spacing"] == written["configurations"]["3d_fullres"]["spacing"]
    assert written["configurations"]["3d_fullres"]["batch_size"] == 5
    assert written["selma"]["pretraining"]["epochs"] == 7
    with pytest.raises(SelmaError, match="second stage"):
        convert_unannotated(
            brain[0], SETTINGS, planned, store=StoreSettings(plans_from=510, configuration="3d_cascade")
        )


def test_a_killed_run_goes_on_and_a_whole_one_is_left_alone(brain, planned):
    def killed(items, label):
        yield from items[:17] if label == "converting slices" else items
        if label == "converting slices":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_unannotated(brain[0], SETTINGS, planned, killed, store=STORE)
    dataset = planned.preprocessed / "Dataset500_SELMA3Dunlabelled"
    assert not dataset.exists()
    manifest = convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    files = sorted((dataset / IDENTIFIER).iterdir())
    before = [p.stat().st_mtime_ns for p in files]
    assert convert_unannotated(brain[0], SETTINGS, planned, store=STORE) == json.loads(json.dumps(manifest))
    assert [p.stat().st_mtime_ns for p in files] == before
    assert not list(planned.preprocessed.glob(".*"))


def test_other_plans_are_another_store(brain, planned):
    convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    path = planned.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans.json"
    content = read_json(path)
    content["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    write_json(path, content)
    with pytest.raises(SelmaError, match="other settings"):
        convert_unannotated(brain[0], SETTINGS, planned, store=STORE)


def test_what_does_not_fit_is_refused_before_anything_is_written(brain, planned):
    path = planned.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans.json"
    content = plans()
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    content["configurations"]["3d_fullres"]["use_mask_for_norm"] = [False] * 2
    write_json(path, content)
    with pytest.raises(SelmaError, match=r"2 input channel.*have 1"):
        convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    content = plans()
    content["original_median_spacing_after_transp"] = [4.0, 1.6, 1.6]
    write_json(path, content)
    with pytest.raises(SelmaError, match="has a voxel size of 1 × 1 × 1, and the plans"):
        convert_unannotated(brain[0], SETTINGS, planned, store=STORE)
    write_json(path, plans())
    with pytest.raises(SelmaError, match="3d_lowres"):
        convert_unannotated(brain[0], SETTINGS, planned, store=StoreSettings(plans_from=510, configuration="3d_lowres"))
    with pytest.raises(SelmaError, match="dataset 77"):
        convert_unannotated(brain[0], SETTINGS, planned, store=StoreSettings(plans_from=77))
    assert not list(planned.preprocessed.glob("*Dataset500*"))
    described = planned.preprocessed / "Dataset500_SELMA3Dunlabelled"
    described.mkdir()
    write_json(described / "dataset.json", {"channel_names": {"0": "a", "1": "b"}})
    with pytest.raises(SelmaError, match="another number of input channels"):
        convert_unannotated(brain[0], SETTINGS, planned, store=STORE)


@pytest.mark.parametrize(
    ("planned", "spacing", "written"),
    [
        ((0.005, 0.0016, 0.0016), None, (0.004, 0.002, 0.002)),
        ((0.005, 0.0016, 0.0016), "header", (0.004, 0.002, 0.002)),
        ((0.005, 0.0016, 0.0016), (0.006, 0.002, 0.002), (0.006, 0.002, 0.002)),
        ((5.0, 1.6, 1.6), None, (4.0, 2.0, 2.0)),
        ((1.0, 1.0, 1.0), None, (1.0, 1.0, 1.0)),
    ],
)
def test_tiles_are_measured_in_the_unit_of_the_plans(planned, spacing, written, tmp_path, rng, folders):
    """The plans of a dataset in mm, µm or voxels; the header of the brain says 4 × 2 × 2 µm."""
    of_dataset = {**plans(), "original_median_spacing_after_transp": planned}
    of_dataset["configurations"]["3d_fullres"]["spacing"] = planned
    dataset = folders.preprocessed / "Dataset007_Mine"
    dataset.mkdir()
    write_json(dataset / "nnUNetPlans.json", of_dataset)
    voxels = (1000 + 500 * rng.random((20, 20, 20))).astype(np.uint16)
    write_image(tmp_path / "in" / "brain.nii.gz", voxels, (0.004, 0.002, 0.002))
    settings = UnannotatedSettings(spacing=spacing, tiles=TileSettings(tile=16, per_volume=2))
    manifest = convert_unannotated(tmp_path / "in", settings, folders, store=StoreSettings(plans_from=7))
    for case in manifest["cases"].values():
        assert case["spacing_zyx"] == pytest.approx(written)
    assert len(manifest["spacing"]) == 1
