import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from nnunet_selma.conversion.annotated import AnnotatedSettings, convert_annotated
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.conftest import write_image, write_patch
from tests.volumes.microscope_files import write_bdv


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def convert(source, folders, **settings):
    return convert_annotated(source, AnnotatedSettings(**settings), folders)


def test_a_dataset_as_nnunet_wants_it(tmp_path, rng, folders):
    image = rng.integers(0, 65535, (12, 14, 16), dtype=np.uint16, endpoint=True)
    image[0, 0, 0] = 65535
    label = np.where(rng.random(image.shape) < 0.3, 255, 0).astype(np.uint8)
    label[1, 1, 1] = 95
    write_patch(tmp_path / "in", "VessAP_vessel", 0, rng, image=image, label=label)
    for number in range(1, 6):
        write_patch(tmp_path / "in", "cFos-Active_Neurons", number, rng)
    manifest = convert(tmp_path / "in", folders)
    dataset = folders.raw / "Dataset510_SELMA3D"
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "structure": 1}
    assert (content["numTraining"], content["file_ending"], list(content["channel_names"])) == (6, ".nii.gz", ["0"])
    voxels, written = read(dataset / "imagesTr" / "blood_vessel_000_wga_0000.nii.gz")
    np.testing.assert_array_equal(voxels, image)
    assert voxels.dtype == np.uint16
    mask, mask_image = read(dataset / "labelsTr" / "blood_vessel_000_wga.nii.gz")
    np.testing.assert_array_equal(mask, label > 0)
    assert mask.dtype == np.uint8
    for one in (written, mask_image):
        assert (one.GetSpacing(), one.GetOrigin(), one.GetDirection()) == (
            (1.0, 1.0, 1.0),
            (0.0, 0.0, 0.0),
            (1.0, 0, 0, 0, 1, 0, 0, 0, 1),
        )
    record = manifest["cases"]["blood_vessel_000_wga"]
    assert record["label"]["values"]["95"] == 1
    assert any("label values other than 0 and 1" in w for w in record["label"]["warnings"])
    assert record["images"][0]["highest"] == 65535
    splits = json.loads((folders.preprocessed / "Dataset510_SELMA3D" / "splits_final.json").read_text())
    assert len(splits) == 5
    assert sorted(case for split in splits for case in split["val"]) == sorted(manifest["cases"])


def test_singleton_axes_and_floats_that_hold_integers(tmp_path, rng, folders):
    image = rng.integers(0, 65535, (5, 6, 7)).astype(np.float64)
    label = (rng.random((5, 6, 7)) < 0.5).astype(np.uint8)
    write_image(tmp_path / "in/VessAP_vessel/raw/patchvolume_000_0000.nii.gz", image[None])
    write_image(tmp_path / "in/VessAP_vessel/gt/patchvolume_000.nii.gz", label[None])
    convert(tmp_path / "in", folders)
    voxels, _ = read(folders.raw / "Dataset510_SELMA3D/imagesTr/blood_vessel_000_wga_0000.nii.gz")
    assert voxels.dtype == np.uint16
    np.testing.assert_array_equal(voxels, image)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        (None, (3.0, 1.625, 1.625)),
        ("physical", (3.0, 1.625, 1.625)),
        ("voxel", (1.0, 1.0, 1.0)),
        ((5.0, 2.0, 1.0), (5.0, 2.0, 1.0)),
    ],
)
def test_spacing_of_one_structure(spacing, expected, tmp_path, rng, folders):
    write_patch(tmp_path / "in", "VessAP_vessel", 0, rng)
    convert(tmp_path / "in", folders, spacing=spacing)
    _, image = read(folders.raw / "Dataset510_SELMA3D/imagesTr/blood_vessel_000_wga_0000.nii.gz")
    assert image.GetSpacing() == pytest.approx(expected[::-1])  # SimpleITK's order is x, y, z


@pytest.mark.parametrize(
    ("mode", "cases", "channels"),
    [
        ("wga", {"blood_vessel_004": [0]}, ["light sheet"]),
        ("eb", {"blood_vessel_004": [1]}, ["light sheet"]),
        ("both", {"blood_vessel_004": [0, 1]}, ["wga", "eb"]),
        ("separate", {"blood_vessel_004_wga": [0], "blood_vessel_004_eb": [1]}, ["light sheet"]),
    ],
)
def test_vessel_channels(mode, cases, channels, tmp_path, rng, folders):
    write_patch(tmp_path / "in", "VessAP_vessel", 4, rng, channels=2)
    convert(tmp_path / "in", folders, vessel_channels=mode)
    dataset = folders.raw / "Dataset510_SELMA3D"
    assert list(json.loads((dataset / "dataset.json").read_text())["channel_names"].values()) == channels
    for case, stains in cases.items():
        for position, stain in enumerate(stains):
            source, _ = read(tmp_path / f"in/VessAP_vessel/raw/patchvolume_004_{stain:04d}.nii.gz")
            np.testing.assert_array_equal(read(dataset / f"imagesTr/{case}_{position:04d}.nii.gz")[0], source)
    assert {p.name.removesuffix(".nii.gz") for p in (dataset / "labelsTr").iterdir()} == set(cases)
    for split in json.loads((folders.preprocessed / "Dataset510_SELMA3D/splits_final.json").read_text()):
        assert set(split["val"]) == set(cases)  # one group: never parted


def test_related_patches_share_a_fold(tmp_path, rng, folders):
    image = rng.integers(0, 65535, (12, 14, 16), dtype=np.uint16)
    for number in (0, 5):
        write_patch(tmp_path / "in", "shannel_cells", number, rng, image=image)
    for number in (1, 2, 3, 4):
        write_patch(tmp_path / "in", "shannel_cells", number, rng)
    manifest = convert(tmp_path / "in", folders)
    assert manifest["groups"]["cell_nuclei_000"] == manifest["groups"]["cell_nuclei_005"]
    assert manifest["related_patches"] == [
        {"first": "cell_nuclei_000", "second": "cell_nuclei_005", "reason": "identical images"}
    ]


def test_empty_labels_are_kept_and_listed(tmp_path, rng, folders):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng, label=np.zeros((12, 14, 16), np.uint8))
    record = convert(tmp_path / "in", folders)["cases"]["AD_plaques_000"]
    assert "the label is empty" in record["label"]["warnings"]


def test_a_killed_run_goes_on_and_a_whole_one_is_left_alone(tmp_path, rng, folders, monkeypatch):
    for number in range(4):
        write_patch(tmp_path / "in", "AD_plaques", number, rng)

    def killed_after_two(items, _):
        yield from items[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_annotated(tmp_path / "in", AnnotatedSettings(), folders, killed_after_two)
    assert not list(folders.raw.glob("Dataset*"))  # nothing that nnU-Net would take for whole
    assert not list(folders.preprocessed.glob("Dataset*"))
    first = next(folders.raw.glob(".*/files/imagesTr/AD_plaques_000_0000.nii.gz"))
    written = first.stat().st_mtime_ns
    manifest = convert(tmp_path / "in", folders)
    assert len(manifest["cases"]) == 4
    image = folders.raw / "Dataset510_SELMA3D/imagesTr/AD_plaques_000_0000.nii.gz"
    assert image.stat().st_mtime_ns == written
    assert convert(tmp_path / "in", folders) == manifest
    assert not list(folders.raw.glob(".*"))
    with pytest.raises(SelmaError, match="exists already"):
        convert(tmp_path / "in", folders, spacing="voxel")


def test_folds_that_a_user_changed_are_left_alone(tmp_path, rng, folders):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng)
    convert(tmp_path / "in", folders)
    splits = folders.preprocessed / "Dataset510_SELMA3D" / "splits_final.json"
    splits.write_text("[]")
    convert(tmp_path / "in", folders)
    assert splits.read_text() == "[]"


def test_other_structures_do_not_stop_the_chosen_ones(tmp_path, rng, folders):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng)
    write_patch(tmp_path / "in", "kidney", 0, rng)
    write_image(
        tmp_path / "in" / "VessAP_vessel" / "raw" / "patchvolume_000_0000.nii.gz", np.zeros((4, 4, 4), np.uint16)
    )
    assert list(convert(tmp_path / "in", folders, structures=("AD_plaques",))["cases"]) == ["AD_plaques_000"]


def test_one_fold_is_refused():
    with pytest.raises(SelmaError, match="at least 2"):
        AnnotatedSettings(folds=1)


def write_tiff(path, voxels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, voxels, photometric="minisblack", **options)


def write_cubes(folder, rng, names=("mouse07_left", "mouse07_right", "mouse08_left", "mouse08_right"), suffix="_mask"):
    """Cubes of a laboratory, image and label in one folder."""
    images = {}
    for name in names:
        images[name] = rng.integers(0, 9999, (12, 14, 16), dtype=np.uint16)
        write_tiff(folder / f"{name}.tif", images[name])
        write_tiff(folder / f"{name}{suffix}.tif", (images[name] > 8000).astype(np.uint8))
    return images


def test_cubes_of_a_laboratory_with_a_structure_of_its_own(tmp_path, rng, folders):
    images = write_cubes(tmp_path / "cubes", rng)
    settings = AnnotatedSettings(
        images=tmp_path / "cubes",
        labels=tmp_path / "cubes",
        structure="TH",
        kind="spot",
        spacing=(6.0, 1.6, 1.6),
        group="mouse[0-9]+",
        folds=2,
    )
    manifest = convert_annotated(None, settings, folders)
    dataset = folders.raw / "Dataset510_SELMA3D"
    assert set(manifest["cases"]) == {f"TH_{name}" for name in images}
    for name, voxels in images.items():
        image, header = read(dataset / "imagesTr" / f"TH_{name}_0000.nii.gz")
        np.testing.assert_array_equal(image, voxels)
        np.testing.assert_array_equal(read(dataset / "labelsTr" / f"TH_{name}.nii.gz")[0], voxels > 8000)
        assert header.GetSpacing() == pytest.approx((1.6, 1.6, 6))
    assert {case["structure"] for case in manifest["cases"].values()} == {"TH"}
    splits = json.loads((folders.preprocessed / "Dataset510_SELMA3D" / "splits_final.json").read_text())
    held_out = sorted(sorted(split["val"]) for split in splits)
    assert held_out == [[f"TH_mouse0{n}_{side}" for side in ("left", "right")] for n in (7, 8)]


def test_groups_from_a_table_that_names_the_files(tmp_path, rng, folders):
    write_cubes(tmp_path / "in" / "cubes", rng, ("a", "b", "c"))
    (tmp_path / "groups.csv").write_text("case,group\na,left\nb,left\nc,right\n")
    manifest = convert(tmp_path / "in", folders, spacing="voxel", group=str(tmp_path / "groups.csv"))
    assert manifest["groups"] == {"cubes-a": "left", "cubes-b": "left", "cubes-c": "right"}


def test_own_cubes_without_a_voxel_size(tmp_path, rng, folders):
    write_cubes(tmp_path / "in", rng)
    with pytest.raises(SelmaError, match="no header states the voxel size; give it in µm as --spacing"):
        convert(tmp_path / "in", folders)
    assert not list(folders.raw.iterdir())


@pytest.mark.parametrize("place", ["files", "pages"])
def test_stains_are_the_input_channels(place, tmp_path, rng, folders):
    stains = rng.integers(0, 9999, (2, 12, 14, 16), dtype=np.uint16)
    if place == "files":
        for channel in (0, 1):
            write_tiff(tmp_path / "in" / "images" / f"a_{channel:04d}.tif", stains[channel])
    else:
        write_tiff(
            tmp_path / "in" / "images" / "a.tif", np.moveaxis(stains, 0, 1), imagej=True, metadata={"axes": "ZCYX"}
        )
    write_tiff(tmp_path / "in" / "masks" / "a.tif", (stains[0] > 8000).astype(np.uint8))
    with pytest.raises(SelmaError, match="is channel 1; name all channels" if place == "files" else "has 2 channels"):
        convert(tmp_path / "in", folders, spacing="voxel")
    convert(tmp_path / "in", folders, spacing="voxel", stains=("TH", "cFos"))
    dataset = folders.raw / "Dataset510_SELMA3D"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "TH", "1": "cFos"}
    for channel in (0, 1):
        np.testing.assert_array_equal(read(dataset / "imagesTr" / f"a_{channel:04d}.nii.gz")[0], stains[channel])


def test_a_corrected_label_is_not_taken_for_converted(tmp_path, rng, folders):
    write_patch(tmp_path / "in", "AD_plaques", 1, rng)
    convert(tmp_path / "in", folders)
    path = tmp_path / "in" / "AD_plaques" / "gt" / "patchvolume_001.nii.gz"
    write_image(path, (rng.random((12, 14, 16)) < 0.2).astype(np.uint8))
    with pytest.raises(SelmaError, match="was made from other files or with other settings"):
        convert(tmp_path / "in", folders)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": Path("a")}, "images and labels belong together"),
        ({"kind": "spot"}, "name the structure, too"),
        ({"stains": ("a", "b"), "channel": 0}, "choose one of them"),
        ({"stains": ("CT", "b")}, "takes this name for a normalisation"),
        ({"stains": ("b", "b")}, "names a channel twice"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(SelmaError, match=message):
        AnnotatedSettings(**options)


def test_a_structure_of_the_table_has_its_kind(tmp_path, folders):
    with pytest.raises(SelmaError, match="is of kind spot in SELMA3D"):
        convert(tmp_path, folders, structure="cfos_neuron", kind="tree")


AFFINE = np.array([[-1.625, 0, 0, 60], [0, -1.625, 0, 60], [0, 0, 6.0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", ["RAS", "SAR", "LPI", "PIL"])
def test_a_label_in_another_orientation_is_turned_to_its_image(codes, tmp_path, rng, folders):
    """Reoriented by nibabel, which keeps every voxel at its place."""
    image = rng.integers(0, 9999, (12, 14, 16), dtype=np.uint16)
    label = (image > 8000).astype(np.uint8)
    for folder in ("raw", "gt"):
        (tmp_path / "in" / "cFos-Active_Neurons" / folder).mkdir(parents=True)
    raw = nibabel.Nifti1Image(image.T, AFFINE)
    change = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    gt = nibabel.Nifti1Image(label.T, AFFINE).as_reoriented(change)
    nibabel.save(raw, tmp_path / "in" / "cFos-Active_Neurons" / "raw" / "patchvolume_001_0000.nii.gz")
    nibabel.save(gt, tmp_path / "in" / "cFos-Active_Neurons" / "gt" / "patchvolume_001.nii.gz")
    record = convert(tmp_path / "in", folders)["cases"]["cfos_neuron_001"]
    dataset = folders.raw / "Dataset510_SELMA3D"
    np.testing.assert_array_equal(read(dataset / "labelsTr" / "cfos_neuron_001.nii.gz")[0], label)
    np.testing.assert_array_equal(read(dataset / "imagesTr" / "cfos_neuron_001_0000.nii.gz")[0], image)
    assert any("lies in another orientation" in warning for warning in record["label"]["warnings"])


def test_a_channel_in_another_orientation_is_turned_to_the_first(tmp_path, rng, folders):
    stains = rng.integers(0, 9999, (2, 12, 14, 16), dtype=np.uint16)
    change = ornt_transform(io_orientation(AFFINE), axcodes2ornt("SAR"))
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(stains[0].T, AFFINE), tmp_path / "in" / "images" / "a_0000.nii.gz")
    turned = nibabel.Nifti1Image(stains[1].T, AFFINE).as_reoriented(change)
    nibabel.save(turned, tmp_path / "in" / "images" / "a_0001.nii.gz")
    label = nibabel.Nifti1Image((stains[0] > 8000).astype(np.uint8).T, AFFINE)
    nibabel.save(label, tmp_path / "in" / "masks" / "a.nii.gz")
    convert(tmp_path / "in", folders, stains=("TH", "cFos"))
    for channel in (0, 1):
        written = folders.raw / "Dataset510_SELMA3D" / "imagesTr" / f"a_{channel:04d}.nii.gz"
        np.testing.assert_array_equal(read(written)[0], stains[channel])


def test_a_label_of_another_place_is_warned_of(tmp_path, rng, folders):
    image = rng.integers(0, 9999, (12, 14, 16), dtype=np.uint16)
    away = AFFINE.copy()
    away[0, 3] += 32.5
    for folder, voxels, affine in (("raw", image, AFFINE), ("gt", (image > 8000).astype(np.uint8), away)):
        path = tmp_path / "in" / "AD_plaques" / folder / "patchvolume_001.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(voxels.T, affine), path)
    record = convert(tmp_path / "in", folders, spacing="voxel")["cases"]["AD_plaques_001"]
    assert any("another origin" in warning for warning in record["label"]["warnings"])


def test_groups_of_the_user_that_are_one_are_refused(tmp_path, rng, folders):
    write_cubes(tmp_path / "in", rng)
    with pytest.raises(SelmaError, match="all 4 patches are one group"):
        convert(tmp_path / "in", folders, spacing="voxel", group="mouse")


def test_patches_of_one_slice_and_two_sources_are_refused(tmp_path, rng, folders):
    for folder in ("images", "masks"):
        write_image(tmp_path / "in" / folder / "a.nii.gz", rng.integers(0, 2, (1, 8, 8), dtype=np.uint8))
    with pytest.raises(SelmaError, match="is a single slice"):
        convert(tmp_path / "in", folders, spacing="voxel")
    with pytest.raises(SelmaError, match="not both"):
        convert(tmp_path, folders, images=tmp_path / "in" / "images", labels=tmp_path / "in" / "masks")


def test_labels_as_predict_volume_writes_them(tmp_path, rng, folders):
    image = rng.integers(0, 9999, (12, 14, 16), dtype=np.uint16)
    write_tiff(tmp_path / "in" / "images" / "a.tif", image)
    path = tmp_path / "in" / "labels" / "a.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    labels = group.create_group("labels")
    labels.attrs["labels"] = ["segmentation"]
    written = labels.create_group("segmentation")
    written.create_array("0", data=(image > 8000).astype(np.uint8))
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    written.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    written.attrs["image-label"] = {}
    convert(tmp_path / "in", folders, spacing="voxel")
    np.testing.assert_array_equal(read(folders.raw / "Dataset510_SELMA3D/labelsTr/a.nii.gz")[0], image > 8000)


def write_stained(folder, name, stains, names):
    """A patch with both stains in one OME-TIFF that names them, and its label."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    metadata = {"axes": "CZYX", **({"Channel": {"Name": names}} if names else {})}
    tifffile.imwrite(folder / "images" / f"{name}.ome.tif", stains, metadata=metadata)
    write_tiff(folder / "masks" / f"{name}.tif", (stains[0] > 8000).astype(np.uint8))


def test_the_names_in_the_files_become_the_names_of_the_input_channels(tmp_path, rng, folders):
    stains = rng.integers(0, 9999, (2, 12, 14, 16), dtype=np.uint16)
    for name in ("a", "b"):
        write_stained(tmp_path / "in", name, stains, ["TH", "cFos"])
    convert(tmp_path / "in", folders, spacing="voxel", stains=("header",))
    dataset = folders.raw / "Dataset510_SELMA3D"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "TH", "1": "cFos"}
    np.testing.assert_array_equal(read(dataset / "imagesTr" / "b_0001.nii.gz")[0], stains[1])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, r"b\.ome\.tif: does not name its channels; name them with --stains"),
        (["cFos", "TH"], r"b\.ome\.tif: its channels are cFos, TH, those of .*a\.ome\.tif TH, cFos; name them"),
    ],
)
def test_names_that_are_missing_or_differ_are_not_taken(names, sentence, tmp_path, rng, folders):
    stains = rng.integers(0, 9999, (2, 12, 14, 16), dtype=np.uint16)
    write_stained(tmp_path / "in", "a", stains, ["TH", "cFos"])
    write_stained(tmp_path / "in", "b", stains, names)
    with pytest.raises(SelmaError, match=sentence):
        convert(tmp_path / "in", folders, spacing="voxel", stains=("header",))
    assert not list(folders.raw.iterdir())


def test_changed_voxels_beside_an_xml_are_noticed(tmp_path, rng, folders):
    h5py = pytest.importorskip("h5py")
    image = rng.integers(1, 60000, (8, 9, 10), dtype=np.uint16)
    (tmp_path / "in" / "images").mkdir(parents=True)
    write_bdv(tmp_path / "in" / "images" / "a.h5", [image], spacing_um_zyx=(2.0, 2.0, 2.0), levels=1)
    write_image(tmp_path / "in" / "masks" / "a.nii.gz", (image > 30000).astype(np.uint8), (2.0, 2.0, 2.0))
    manifest = convert(tmp_path / "in", folders)
    assert convert(tmp_path / "in", folders) == manifest
    with h5py.File(tmp_path / "in" / "images" / "a.h5", "a") as file:
        file["t00000/s00/0/cells"][3] += 1
    with pytest.raises(SelmaError, match="made from other files"):
        convert(tmp_path / "in", folders)


def test_a_dataset_of_an_earlier_version_is_complete(tmp_path, rng, folders):
    write_patch(tmp_path / "in", "AD_plaques", 1, rng)
    manifest = convert(tmp_path / "in", folders)
    (file,) = folders.raw.glob("Dataset510*/selma_manifest.json")
    content = read_json(file)
    assert [content["settings"].pop(name) for name in ("scene", "channel", "time")] == [None] * 3
    write_json(file, content)
    assert convert(tmp_path / "in", folders)["cases"] == manifest["cases"]
