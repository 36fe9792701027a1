import sys

import numpy as np
import pytest
import tifffile

from nnunet_selma.conversion.walk import is_mask_name, label_folder, passed_by, walk
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.volumes.microscope_files import write_bdv, write_n5

VOXELS = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)


def write_slices(folder, count=5):
    folder.mkdir(parents=True)
    for z in range(count):
        tifffile.imwrite(folder / f"img_Z{z:04d}.tif", VOXELS[z % 5])
    return folder


def fates(source):
    return {entry.path.relative_to(source).as_posix(): entry.fate for entry in walk(source)}


def test_stacks_volumes_and_a_preview_beside_them(tmp_path):
    write_slices(tmp_path / "brain1" / "C00")
    write_slices(tmp_path / "brain1" / "C01")
    tifffile.imwrite(tmp_path / "brain1" / "preview.tif", VOXELS.max(0))
    write_image(tmp_path / "brain1" / "C00" / "brain2.nii.gz", VOXELS)
    assert fates(tmp_path) == {
        "brain1/C00": "volume",
        "brain1/C00/brain2.nii.gz": "volume",
        "brain1/C01": "volume",
        "brain1/preview.tif": "passed by",
    }
    assert {entry.path.name: entry.count for entry in walk(tmp_path)}["C00"] == 5


def test_slices_with_volumes_below_are_a_question(tmp_path):
    write_slices(tmp_path / "brain")
    write_slices(tmp_path / "brain" / "again")
    assert fates(tmp_path) == {"brain": "question", "brain/again": "volume"}


def test_files_of_many_pages_are_volumes_and_a_single_page_is_not(tmp_path):
    for name in ("a", "b", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", VOXELS, photometric="minisblack")
    tifffile.imwrite(tmp_path / "mip.tif", VOXELS.max(0))
    assert fates(tmp_path) == {"a.tif": "volume", "b.tif": "volume", "c.tif": "volume", "mip.tif": "passed by"}


@pytest.mark.parametrize(
    "name",
    [
        "m.h5",
        "m.oib",
        "m.lsm",
        "m.vsi",
        "m.npy",
        "m.tif.gz",
        "m.ome.tar",
        "m.btf",
        "m.raw",
        "m.img",
        "m.VSI",
    ],
)
def test_formats_without_a_reader_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    (entry,) = walk(tmp_path)
    assert entry.fate == "passed by"
    assert entry.reason not in ("", "no image")
    assert walk(tmp_path / name) == [entry]


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("m.ims", "h5py", "nnunet-selma[hdf5]"),
        ("m.CZI", "pylibCZIrw", "nnunet-selma[microscopes]"),
        ("m.lif", "liffile", "nnunet-selma[microscopes]"),
        ("m.nd2", "nd2", "nnunet-selma[microscopes]"),
    ],
)
def test_without_its_library_a_file_of_a_microscope_is_passed_by_with_the_remedy(
    name, module, install, tmp_path, monkeypatch
):
    (tmp_path / name).write_bytes(b"x")
    (entry,) = walk(tmp_path)
    assert entry.fate == "volume"
    monkeypatch.setitem(sys.modules, module, None)
    (entry,) = walk(tmp_path)
    assert entry.fate == "passed by"
    assert install in entry.reason
    with pytest.raises(SelmaError, match=rf"{name}.*{install.replace('[', '.').replace(']', '.')}"):
        open_volume(tmp_path / name)


def test_slices_of_pictures_and_foreign_n5_are_an_entry_each(tmp_path):
    for z in range(7):
        path = tmp_path / "png" / f"z{z}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "m.n5" / "c0").mkdir(parents=True)
    pictures, n5 = sorted(walk(tmp_path), key=lambda entry: -entry.count)
    assert (pictures.path.name, pictures.count, n5.path.name) == ("png", 7, "m.n5")
    assert [group.files for group in passed_by([pictures, n5])] == [7, 1]


@pytest.mark.parametrize("voxels", ["brain.h5", "brain.n5"])
def test_an_xml_and_its_voxels_are_one_volume(voxels, tmp_path):
    xml = write_bdv(tmp_path / voxels, [VOXELS], spacing_um_zyx=(6.0, 1.6, 1.5), levels=2)
    write_n5(tmp_path / "interestpoints.n5" / "points", VOXELS)
    reasons = {entry.path.name: (entry.fate, entry.reason) for entry in walk(tmp_path)}
    layout = "N5 of another layout than BigDataViewer's is not read; save it as OME-Zarr"
    assert reasons == {
        "brain.xml": ("volume", ""),
        voxels: ("passed by", "a part of brain.xml"),
        "interestpoints.n5": ("passed by", layout),
    }
    xml.unlink()
    assert fates(tmp_path) == {voxels: "volume", "interestpoints.n5": "passed by"}
    assert [entry.fate for entry in walk(tmp_path / voxels)] == ["volume"]


def test_slices_beside_n5_are_a_stack(tmp_path):
    """As beside an OME-Zarr: the folder of voxels is a file among them, not a folder of further images."""
    write_slices(tmp_path / "brain")
    write_bdv(tmp_path / "brain" / "fused.n5", [VOXELS], spacing_um_zyx=(6.0, 1.6, 1.5), levels=1)
    assert fates(tmp_path) == {"brain": "volume", "brain/fused.n5": "passed by", "brain/fused.xml": "volume"}


def test_links_are_followed_but_not_in_circles_and_not_twice(tmp_path):
    brain = write_slices(tmp_path / "in" / "a_brain")
    (tmp_path / "in" / "b_again").symlink_to(brain)
    (tmp_path / "in" / "c_up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "d_gone.tif").symlink_to(tmp_path / "nowhere.tif")
    elsewhere = write_slices(tmp_path / "elsewhere")
    (tmp_path / "in" / "e_linked").symlink_to(elsewhere)
    reasons = {entry.path.name: entry.reason for entry in walk(tmp_path / "in")}
    assert [entry.path.name for entry in walk(tmp_path / "in") if entry.fate == "volume"] == ["a_brain", "e_linked"]
    assert reasons["b_again"] == reasons["c_up"] == "a link to a folder that is taken already"
    assert "mend the link" in reasons["d_gone.tif"]


def test_hidden_and_other_files_have_a_fate_too(tmp_path):
    for name in ("._a.tif", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert set(fates(tmp_path).values()) == {"passed by"}
    assert len(walk(tmp_path)) == 3


MASKS = [
    "brain_mask",
    "brainmask",
    "labels",
    "labelsTr",
    "Labels_2",
    "segmentation",
    "Masks",
    "gt",
    "label",
    "registered_atlas",
    "m1_cp_masks",
]
LABEL_FILES = ["mouse7_seg", "mouse7-gt", "m_label", "m_manual", "m_truth", "mouse1_Object Predictions"]
IMAGES = [
    "brain7",
    "labelfree",
    "label-free_brain",
    "segregated_C00",
    "TH_labelled",
    "gtx",
    "GT-mouse3",
    "seg12_mouse",
    "brain1_masked",
]


@pytest.mark.parametrize("name", [*MASKS, *LABEL_FILES, *IMAGES])
def test_names_of_masks(name):
    assert is_mask_name(name) == (name in MASKS)
    assert is_mask_name(name, is_file=True) == (name not in IMAGES)


def test_a_source_that_is_called_like_masks_holds_masks(tmp_path):
    path = write_image(tmp_path / "labelsTr" / "c1.nii.gz", VOXELS)
    assert [entry.fate for entry in walk(tmp_path / "labelsTr")] == ["mask"]
    assert [entry.fate for entry in walk(path)] == ["mask"]


def test_links_to_files_are_files(tmp_path):
    path = write_image(tmp_path / "Data" / "m0.nii.gz", VOXELS)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "m0_0000.nii.gz").symlink_to(path)
    write_image(tmp_path / "labelsTr" / "m0.nii.gz", (VOXELS > 9).astype(np.uint8))
    assert list(fates(tmp_path).values()) == ["volume", "annotated", "mask"]


@pytest.mark.parametrize(
    ("images", "labels"), [("raw", "gt"), ("images", "masks"), ("Images", "Labels"), ("imagesTr", "labelsTr")]
)
def test_annotated_images_are_no_unlabelled_volumes(images, labels, tmp_path):
    write_image(tmp_path / "lab" / images / "a.nii.gz", VOXELS)
    write_image(tmp_path / "lab" / labels / "a.nii.gz", (VOXELS > 9).astype(np.uint8))
    write_image(tmp_path / "imagesTs" / "b.nii.gz", VOXELS)
    assert label_folder(tmp_path / "lab" / images) == tmp_path / "lab" / labels
    assert fates(tmp_path) == {
        f"lab/{images}/a.nii.gz": "annotated",
        f"lab/{labels}/a.nii.gz": "mask",
        "imagesTs/b.nii.gz": "volume",
    }


def test_images_without_a_folder_of_labels_are_volumes(tmp_path):
    write_image(tmp_path / "images" / "a.nii.gz", VOXELS)
    assert fates(tmp_path) == {"images/a.nii.gz": "volume"}


def test_a_damaged_ome_zarr_is_a_volume_that_opening_names(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zattrs").write_text("{")
    (tmp_path / "a.zarr" / ".zgroup").write_text("{")
    assert fates(tmp_path) == {"a.zarr": "volume"}


@pytest.mark.parametrize("place", ["below", "link", "up"])
def test_an_xml_and_voxels_in_another_folder_are_one_volume(place, tmp_path):
    voxels = tmp_path / "in" / "voxels"
    voxels.mkdir(parents=True)
    xml = write_bdv(voxels / "brain.h5", [VOXELS], spacing_um_zyx=(6.0, 1.6, 1.5), levels=1)
    path = {"below": "voxels/brain.h5", "link": "link.h5", "up": "../in/voxels/brain.h5"}[place]
    text = xml.read_text(encoding="utf-8").replace(">brain.h5<", f">{path}<")
    xml.unlink()
    (tmp_path / "in" / "brain.xml").write_text(text, encoding="utf-8")
    if place == "link":
        (tmp_path / "in" / "link.h5").symlink_to(voxels / "brain.h5")
    volumes = [entry.path.name for entry in walk(tmp_path / "in") if entry.fate == "volume"]
    assert volumes == ["brain.xml"]


FOREIGN = '<SpimData version="0.2"><SequenceDescription><ImageLoader format="spimreconstruction.filemap2"/></SequenceDescription></SpimData>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FOREIGN, "its voxels are neither HDF5 nor N5 (loader spimreconstruction.filemap2)"),
        (FOREIGN[:60], "is damaged"),
    ],
)
def test_an_xml_that_describes_nothing_readable_is_passed_by(content, reason, tmp_path):
    write_image(tmp_path / "fused.nii.gz", VOXELS)
    (tmp_path / "dataset.xml").write_text(content)
    foreign, fused = walk(tmp_path)
    assert (foreign.fate, fused.fate) == ("passed by", "volume")
    assert foreign.reason.startswith(reason)


def test_an_xml_whose_voxels_are_missing_is_a_volume_that_opening_names(tmp_path):
    xml = write_bdv(tmp_path / "brain.h5", [VOXELS], spacing_um_zyx=(6.0, 1.6, 1.5), levels=1)
    (tmp_path / "brain.h5").unlink()
    assert [(entry.path, entry.fate) for entry in walk(tmp_path)] == [(xml, "volume")]
