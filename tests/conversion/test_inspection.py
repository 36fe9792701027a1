import numpy as np
import pytest

from nnunet_selma.conversion import file_contents
from nnunet_selma.conversion.inspection import as_text, inspect
from nnunet_selma.conversion.unannotated import UnannotatedSettings
from nnunet_selma.errors import SelmaError
from tests.conftest import write_image, write_patch
from tests.volumes.microscope_files import write_bdv, write_imaris
from tests.volumes.test_choice import write_zarr


def test_a_clean_download(tmp_path, rng):
    for number in range(3):
        write_patch(tmp_path, "cFos-Active_Neurons", number, rng)
    found = inspect(tmp_path)
    assert found.problems == []
    assert found.warnings == []
    images, label = found.patches["cfos_neuron_001"]
    assert images[0].shape_zyx == (12, 14, 16)
    assert images[0].dtype == "uint16"
    assert 0 < label.foreground_share < 0.5
    assert found.plans[0].startswith("convert annotated: 3 cases of c-Fos+ cell")


def test_everything_that_is_odd_is_said(tmp_path, rng):
    image = rng.integers(1, 60000, (12, 14, 16), dtype=np.uint16)
    saturated = image.copy()
    saturated[:3] = 65535
    write_patch(tmp_path, "VessAP_vessel", 0, rng, image=image, label=(image > 30000) * np.uint8(255))
    write_patch(tmp_path, "VessAP_vessel", 1, rng, image=image)
    write_patch(tmp_path, "VessAP_vessel", 2, rng, image=saturated, label=np.zeros(image.shape, np.uint8))
    write_image(tmp_path / "VessAP_vessel/raw/patchvolume_003_0000.nii.gz", image)
    write_patch(tmp_path, "VessAP_vessel", 4, rng, image=np.full(image.shape, np.nan, np.float32))
    write_image(tmp_path / "VessAP_vessel/raw/patchvolume_005_0000.nii.gz", image[:5])
    write_image(tmp_path / "VessAP_vessel/gt/patchvolume_005.nii.gz", (image > 9).astype(np.uint8))
    found = inspect(tmp_path)
    warnings, problems = "\n".join(found.warnings), "\n".join(found.problems)
    for sentence in (
        "label values other than 0 and 1",
        "blood_vessel_000 and blood_vessel_001: identical images",
        "saturated",
        "the label is empty",
    ):
        assert sentence in warnings
    for sentence in (
        "patchvolume_003_0000.nii.gz: no ground truth",
        "patchvolume_004_0000.nii.gz: holds NaN",
        "they cannot belong together",
    ):
        assert sentence in problems
    assert len(found.problems) == 3


def test_a_header_that_contradicts_the_table(tmp_path, rng):
    write_image(
        tmp_path / "cell_nucleus" / "patchvolume_1.nii.gz",
        rng.integers(0, 999, (8, 8, 8), dtype=np.uint16),
        (5.0, 2.0, 2.0),
    )
    result = inspect(tmp_path)
    (problem,) = result.problems
    assert "the header says 5 × 2 × 2 µm, the table of SELMA3D's structures 5 × 0.54 × 0.54 µm" in problem
    differs, guessed = result.warnings
    assert "differs from the table" in differs
    # ITK writes mm, whatever it was given
    assert "the header says mm; its voxel size 5 × 2 × 2 is taken as µm" in guessed
    assert inspect(tmp_path, UnannotatedSettings(spacing="header")).problems == []


def test_volumes_are_sampled_and_an_unknown_structure_is_mentioned(tmp_path, rng):
    write_image(tmp_path / "a.nii.gz", rng.integers(0, 999, (8, 8, 8), dtype=np.uint16), (0.005, 0.002, 0.002))
    found = inspect(tmp_path)
    assert list(found.volumes) == ["volume_a"]
    assert "--structure" in found.warnings[0]
    assert not inspect(tmp_path, UnannotatedSettings(structure="astrocyte")).warnings
    assert "intensities are those of 8 slices" in as_text(found)
    whole = inspect(tmp_path, full=True)
    assert "intensities are those" not in as_text(whole)
    assert whole.volumes["volume_a"][0].highest >= found.volumes["volume_a"][0].highest


def test_a_voxel_size_that_no_header_states_is_a_problem_for_data_of_a_laboratory(tmp_path, rng):
    write_image(tmp_path / "microglia" / "mine.nii.gz", rng.integers(0, 999, (8, 8, 8), dtype=np.uint16))
    (problem,) = inspect(tmp_path).problems
    assert "no header states the voxel size; give it in µm as --spacing Z,Y,X" in problem
    assert "6,1.62,1.62" in problem
    assert not inspect(tmp_path, UnannotatedSettings(spacing=(6.0, 2.0, 2.0))).problems


def test_what_is_passed_by_is_listed_with_its_reason(tmp_path, rng):
    voxels = rng.integers(0, 999, (8, 8, 8), dtype=np.uint16)
    write_image(tmp_path / "a.nii.gz", voxels, (0.005, 0.002, 0.002))
    write_image(tmp_path / "a_mask.nii.gz", (voxels > 500).astype(np.uint8))
    write_image(tmp_path / "tissue.nii.gz", (voxels > 500).astype(np.uint8))
    (tmp_path / "b.klb").write_bytes(b"KLB")
    result = inspect(tmp_path)
    text = as_text(result)
    assert "b.klb): KLB is not read" in text
    assert "tissue.nii.gz): only two values, 0 and another, as a mask has" in text
    assert list(result.volumes) == ["volume_a"]
    assert list(result.patches) == ["a"]  # convert annotated takes the pair, convert unannotated the image


def test_it_writes_nothing_and_names_what_is_missing(tmp_path, rng):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng)
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    inspect(tmp_path / "in")
    assert sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*")) == before
    with pytest.raises(SelmaError, match="no such"):
        inspect(tmp_path / "out")


def test_what_would_stop_the_conversion_of_the_volumes_is_said_beside_patches_too(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 0, rng)
    for sample in ("a-b", "a b"):
        write_image(tmp_path / "cell_nucleus" / f"{sample}.nii.gz", rng.integers(0, 999, (8, 8, 8), dtype=np.uint16))
    (problem,) = inspect(tmp_path).problems
    assert "would both be named" in problem


def test_unannotated_patches_of_2026_are_volumes(tmp_path, rng):
    path = tmp_path / "isolated_structures" / "Sox9_Chondrogenic_cells" / "patchvolume_1000.nii.gz"
    write_image(path, rng.integers(0, 999, (8, 8, 8), dtype=np.uint16))
    found = inspect(tmp_path)
    assert found.problems == []
    assert len(found.volumes) == 1


def test_a_sample_is_read_slice_by_slice(tmp_path, monkeypatch, rng):
    from nnunet_selma.volumes.nifti import NiftiVolume

    write_image(
        tmp_path / "vessel" / "a.nii.gz",
        np.concatenate([np.full((15, 8, 8), 7), np.full((1, 8, 8), 65535)]).astype(np.uint16),
    )
    depths = []
    read = NiftiVolume._read
    monkeypatch.setattr(
        NiftiVolume, "_read", lambda self, z, y, x: (depths.append(z.stop - z.start), read(self, z, y, x))[1]
    )
    (facts,) = inspect(tmp_path).volumes["blood_vessel_a"]
    assert set(depths) == {1}
    assert (facts.lowest, facts.highest, facts.saturated_share) == (7, 65535, 1 / 8)


def test_a_dataset_of_nnunet_needs_no_conversion(tmp_path, rng):
    dataset = tmp_path / "Dataset007_Mine"
    voxels = rng.integers(0, 999, (8, 8, 8), dtype=np.uint16)
    write_image(dataset / "imagesTr" / "a_0000.nii.gz", voxels)
    write_image(dataset / "labelsTr" / "a.nii.gz", (voxels > 500).astype(np.uint8))
    assert "no header states the voxel size" in inspect(tmp_path).problems[0]
    (dataset / "dataset.json").write_text("{}")
    result = inspect(tmp_path)
    assert result.problems == []
    assert result.plans == ["use Dataset007_Mine as it is: a dataset that nnU-Net has already needs no conversion"]


def test_scenes_channels_time_points_and_levels_of_a_file_are_listed(tmp_path, rng):
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    images = rng.integers(0, 60000, (2, 3, 2, 8, 9, 10), dtype=np.uint16)
    path = write_zarr(tmp_path / "v.ome.zarr", images)
    page = as_text(inspect(path))
    line = "2 channels (GFP, cFos), 3 time points, 2 levels: 8×9×10 of"
    assert f"scene 0 (0): {line} 2×2×2 µm; 4×5×5 of 4×4×4 µm" in page
    assert f"scene 1 (1): {line} 3×3×3 µm" in page
    assert "choose one with --scene" in page
    chosen = UnannotatedSettings(scene="1", channel=0, time=2)
    result = inspect(path, chosen)
    assert result.problems == []
    assert [scene.levels[1].shape_zyx for scene in result.contents[str(path)].scenes] == [(4, 5, 5)]


def test_a_file_of_a_single_image_has_nothing_to_list(tmp_path, rng):
    write_image(tmp_path / "v.nii.gz", rng.integers(0, 60000, (8, 9, 10), dtype=np.uint16), (2.0, 2.0, 2.0))
    assert inspect(tmp_path).contents == {}


SCENES = ("2", "0", "1")
"""Names of tiles, in another order than their numbers in the file."""


def write_scenes(path, rng, scenes=SCENES):
    """A dataset of tiles with these names, two channels and two time points."""
    images = [rng.integers(0, 60000, (8, 9, 10), dtype=np.uint16) for _ in range(2)]
    return write_bdv(path, images, spacing_um_zyx=(2.0, 2.0, 2.0), levels=1, scenes=scenes, times=2)


def test_scenes_are_asked_for_by_their_names(tmp_path, rng, monkeypatch):
    """Names count before numbers, so that a number may be the name of another scene."""
    path = write_scenes(tmp_path / "v.h5", rng)
    names = [f"tile {name}" for name in SCENES]
    asked = []
    opened = file_contents.open_volume
    monkeypatch.setattr(
        file_contents, "open_volume", lambda path, **more: asked.append(more["scene"]) or opened(path, **more)
    )
    page = as_text(inspect(path))
    assert asked == names
    for number, name in enumerate(names):
        assert f"scene {number} ({name}): 2 channels, 2 time points" in page


@pytest.mark.parametrize("scene", ["1", "tile 0"])
def test_a_chosen_scene_has_the_number_and_the_name_in_the_file(scene, tmp_path, rng):
    path = write_scenes(tmp_path / "v.h5", rng)
    result = inspect(path, UnannotatedSettings(scene=scene, channel=0, time=1))
    assert "scene 1 (tile 0): 2 channels" in as_text(result)
    assert result.problems == []


def test_scenes_that_cannot_be_read_and_those_at_the_end_are_listed_too(tmp_path, rng, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = write_scenes(tmp_path / "v.h5", rng)
    with h5py.File(tmp_path / "v.h5", "a") as file:
        del file["t00001/s02"]  # the first channel of the second scene at the second time point
    monkeypatch.setattr(file_contents, "_MOST_SCENES", 2)
    lines = as_text(inspect(path, UnannotatedSettings(time=1))).splitlines()
    listed = [line.removeprefix(f"{path}: ") for line in lines if line.startswith(f"{path}: ")]
    assert listed[0].startswith("scene 0 (tile 2): 2 channels")
    assert listed[1].startswith(f"scene 1 (tile 0): {tmp_path / 'v.h5'}: cannot be read")
    assert listed[2:] == ["… and 1 more scene"]
    assert "scene 1 (tile 0): 2 channels" in as_text(inspect(path, UnannotatedSettings(time=0)))


def test_the_images_within_files_of_annotated_patches_are_listed(tmp_path, rng):
    image = rng.integers(1, 60000, (8, 9, 10), dtype=np.uint16)
    (tmp_path / "images").mkdir()
    write_imaris(tmp_path / "images" / "a.ims", [image, image], spacing_um_zyx=(2.0, 2.0, 2.0), names=("GFP", "cFos"))
    write_image(tmp_path / "masks" / "a.nii.gz", (image > 30000).astype(np.uint8), (2.0, 2.0, 2.0))
    page = as_text(inspect(tmp_path))
    assert "a.ims: 2 channels (GFP, cFos), 3 levels: 8×9×10 of 2×2×2 µm" in page
    assert "choose one of 0 to 1 with --channel" in page
