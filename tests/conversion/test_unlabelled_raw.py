import numpy as np
import pytest

from nnunet_selma.conversion.unlabelled_raw import has_foreground, store_unlabelled
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.tile_store import TileStore
from nnunet_selma.running.json_files import read_json, write_json
from tests.conftest import write_image
from tests.plans import plans


def dataset(folders, images, labels=(), *, channels=1):
    """A user's raw dataset of images (case, channel, z, y, x), beside a planned annotated one."""
    for name in ("Dataset510_SELMA3D", "Dataset007_Own"):
        (folders.raw / name).mkdir(parents=True)
        (folders.preprocessed / name).mkdir(parents=True)
        described = {
            "channel_names": {str(number): f"stain {number}" for number in range(channels)},
            "labels": {"background": 0},
            "numTraining": len(images),
            "file_ending": ".nii.gz",
        }
        write_json(folders.raw / name / "dataset.json", described)
    content = plans()
    own = content["configurations"]["3d_fullres"]
    own["normalization_schemes"], own["use_mask_for_norm"] = ["ZScoreNormalization"] * channels, [False] * channels
    write_json(folders.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans.json", content)
    raw = folders.raw / "Dataset007_Own"
    (raw / "imagesTr").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        for channel, voxels in enumerate(image):
            write_image(raw / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", voxels, (1.0, 1.0, 1.0))
    for number, label in enumerate(labels):
        write_image(raw / "labelsTr" / f"case_{number}.nii.gz", label.astype(np.uint8), (1.0, 1.0, 1.0))
    return raw


def store(folders):
    return store_unlabelled(510, 7, folders, plans_name="nnUNetPlans", configuration="3d_fullres")


@pytest.fixture
def images(rng):
    return rng.integers(100, 9000, (2, 1, 20, 18, 24)).astype(np.uint16)


@pytest.mark.parametrize(
    ("labels", "expected"), [([], False), ([1], False), ([0, 0], False), ([0, 1], True), ([1, 1], True)]
)
def test_nnunet_needs_a_label_for_every_case_and_a_foreground_in_one(labels, expected, images, folders):
    raw = dataset(folders, images, [np.full((20, 18, 24), value) for value in labels])
    assert has_foreground(raw) is expected


@pytest.mark.parametrize("channels", [1, 2])
def test_images_without_labels_are_stored_as_nnunet_normalises_them(channels, folders, rng):
    images = rng.integers(100, 9000, (2, channels, 20, 18, 24)).astype(np.uint16)
    dataset(folders, images, channels=channels)
    assert store(folders) == "nnUNetPlans_from510_store"
    home = folders.preprocessed / "Dataset007_Own"
    own = read_json(home / "nnUNetPlans_from510_store.json")["configurations"]["3d_fullres"]
    stored = TileStore(str(home / own["data_identifier"]))
    assert sorted(stored.identifiers) == ["case_0", "case_1"]
    for number, image in enumerate(images):
        data, label, _, _ = stored.load_case(f"case_{number}")
        mean, deviation = (
            getattr(image, moment)((1, 2, 3), keepdims=True, dtype=np.float64) for moment in ("mean", "std")
        )
        np.testing.assert_allclose(data[(slice(None),) * 4], (image - mean) / deviation, atol=1e-5)
        assert not label.any()
    assert read_json(home / "dataset.json")["channel_names"] == {str(n): f"stain {n}" for n in range(channels)}


def test_a_second_run_writes_nothing_anew(images, folders):
    dataset(folders, images)
    store(folders)
    files = sorted((folders.preprocessed / "Dataset007_Own").rglob("*.b2nd"))
    written = [path.stat().st_mtime_ns for path in files]
    assert store(folders) == "nnUNetPlans_from510_store"
    assert [path.stat().st_mtime_ns for path in files] == written


def test_an_image_that_is_not_finite_is_named(images, folders):
    spoilt = images.astype(np.float32)
    spoilt[1, 0, 3, 3, 3] = np.nan
    dataset(folders, spoilt)
    with pytest.raises(SelmaError, match=r"case_1_0000.nii.gz: holds NaN"):
        store(folders)


def test_a_damaged_image_is_named(images, folders):
    path = dataset(folders, images) / "imagesTr" / "case_1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SelmaError, match=r"case_1_0000.nii.gz"):
        store(folders)


def test_images_that_were_replaced_are_noticed(images, folders):
    raw = dataset(folders, images)
    store(folders)
    write_image(raw / "imagesTr" / "case_0_0000.nii.gz", images[0, 0] + 1, (1.0, 1.0, 1.0))
    with pytest.raises(SelmaError, match="made from other files"):
        store(folders)


def test_a_list_of_cases_in_the_description_needs_no_labels(images, folders):
    raw = dataset(folders, images)
    described = read_json(raw / "dataset.json")
    entries = {f"case_{number}": {"images": [f"imagesTr/case_{number}_0000.nii.gz"]} for number in range(2)}
    write_json(raw / "dataset.json", {**described, "dataset": entries})
    assert not has_foreground(raw)
    store(folders)


def test_a_normalisation_that_a_store_cannot_do_names_the_way_that_can(images, folders):
    dataset(folders, images)
    path = folders.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans.json"
    content = read_json(path)
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    write_json(path, content)
    with pytest.raises(SelmaError, match=r"convert unannotated --to raw"):
        store(folders)


def test_a_dataset_without_images_says_what_to_put_where(folders):
    raw = dataset(folders, [])
    with pytest.raises(SelmaError, match=r"imagesTr: holds no images that end in .nii.gz"):
        has_foreground(raw)
