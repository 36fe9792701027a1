"""The folder trees, to the letter."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
from numpy.typing import NDArray

from nnunet_selma.demo.phantom import download

SMALL = (16, 20, 24)
ALL = {"blood_vessel": 1, "cfos_neuron": 1, "cell_nuclei": 1, "AD_plaques": 1}


def read(path: Path) -> NDArray[np.generic]:
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))


def dimensions(path: Path) -> tuple[int, ...]:
    """Axis lengths in the header: SimpleITK itself would hide a trailing axis of length 1."""
    with gzip.open(path) as file:
        count, *lengths = struct.unpack("<8h", file.read(56)[40:])
    return tuple(lengths[:count])


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_tree_of_the_bioimage_archive(tmp_path: Path) -> None:
    patches = download.write_annotated(tmp_path, {**ALL, "blood_vessel": 2}, np.random.default_rng(0), shape_zyx=SMALL)
    top = "SELMA3D_training_annotated"
    assert tree(tmp_path) == {
        *(f"{top}/VessAP_vessel/raw/patchvolume_00{n}_000{c}.nii.gz" for n in range(2) for c in range(2)),
        *(f"{top}/VessAP_vessel/gt/patchvolume_00{n}.nii.gz" for n in range(2)),
        f"{top}/cFos-Active_Neurons/raw/patchvolume_000_0000.nii.gz",
        f"{top}/cFos-Active_Neurons/gt/patchvolume_000.nii.gz",
        f"{top}/shannel_cells/raw/patchvolume_000_0000.nii.gz",
        f"{top}/shannel_cells/gt/patchvolume_000.nii.gz",
        f"{top}/AD_plaques/raw/patchvolume_000_0000.nii.gz",
        f"{top}/AD_plaques/gt/patchvolume_000.nii.gz",
    }
    listed = {file for patch in patches for file in (patch.label, *patch.raw)}
    assert listed == {tmp_path / name for name in tree(tmp_path)}
    assert [(p.structure, p.number, len(p.raw)) for p in patches[:3]] == [
        ("blood_vessel", "000", 2),
        ("blood_vessel", "001", 2),
        ("cfos_neuron", "000", 1),
    ]


def test_tree_of_the_challenge_zips(tmp_path: Path) -> None:
    download.write_annotated(tmp_path, ALL, np.random.default_rng(0), shape_zyx=SMALL, layout="challenge_zip")
    assert tree(tmp_path) == {
        "brain_vessels_patches/VessAP_vessel/raw/patchvolume_000_0000.nii.gz",
        "brain_vessels_patches/VessAP_vessel/raw/patchvolume_000_0001.nii.gz",
        "annotation_brain_vessels/VessAP_vessel/gt/patchvolume_000.nii.gz",
        "brain_c_fos_positive_patches/cFos-Active_Neurons/raw/patchvolume_000_0000.nii.gz",
        "annotation_brain_c_fos_positive/cFos-Active_Neurons/gt/patchvolume_000.nii.gz",
        "brain_cell_nucleus_patches/shannel_cells/raw/patchvolume_000_0000.nii.gz",
        "annotation_brain_cell_nucleus/shannel_cells/gt/patchvolume_000.nii.gz",
        "brain_amyloid_plaque_patches/AD_plaques/raw/patchvolume_000_0000.nii.gz",
        "annotation_brain_amyloid_plaque/AD_plaques/gt/patchvolume_000.nii.gz",
    }


def test_annotated_files_hold_what_the_real_ones_hold(tmp_path: Path) -> None:
    shapes = {"blood_vessel": (12, 30, 34), "cell_nuclei": (20, 22, 24)}
    counts = {"blood_vessel": 1, "cell_nuclei": 1}
    for patch in download.write_annotated(tmp_path, counts, np.random.default_rng(1), shape_zyx=shapes):
        label = read(patch.label)
        assert label.shape == shapes[patch.structure]
        assert label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 1}
        assert patch.betti is not None
        assert patch.betti[0] > 0
        for file in patch.raw:
            image = SimpleITK.ReadImage(str(file))
            assert image.GetPixelID() == SimpleITK.sitkUInt16
            assert image.GetSize() == shapes[patch.structure][::-1]
            assert image.GetSpacing() == (1, 1, 1)
            assert image.GetOrigin() == (0, 0, 0)
            assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_shapes_are_the_real_ones_unless_told_otherwise() -> None:
    assert download.PATCH_SHAPE_ZYX == {
        "blood_vessel": (50, 500, 500),
        "cfos_neuron": (100, 100, 100),
        "cell_nuclei": (200, 200, 200),
        "AD_plaques": (300, 300, 300),
    }


def test_oddities_of_the_first_vessel_patches(tmp_path: Path) -> None:
    patches = download.write_annotated(
        tmp_path, {"blood_vessel": 6, "cfos_neuron": 1}, np.random.default_rng(0), shape_zyx=SMALL, oddities=True
    )
    for file in (*patches[0].raw, patches[0].label):
        assert dimensions(file) == (*SMALL[::-1], 1)
    assert all(dimensions(patch.label) == SMALL[::-1] for patch in patches[1:])
    assert [int(read(patch.label).max()) for patch in patches] == [255] * 5 + [1, 1]


@pytest.mark.parametrize(
    ("structure", "folder", "dtype"),
    [
        ("cfos_neuron", "cFos", np.float64),
        ("microglia", "microglia", np.uint16),
    ],
)
def test_octants_of_delivr_reassemble_the_cube(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: str, folder: str, dtype: type
) -> None:
    drawn = []
    draw = download.draw
    monkeypatch.setattr(download, "draw", lambda *args, **options: drawn.append(draw(*args, **options)) or drawn[-1])
    shape = (20, 24, 28)
    patches = download.write_annotated(
        tmp_path, {structure: 2}, np.random.default_rng(0), shape_zyx=shape, layout="delivr"
    )
    names = {f"patchvolume_{cube}_{octant}.nii.gz" for cube in range(2) for octant in range(8)}
    assert tree(tmp_path) == {f"{folder}/{kind}/{name}" for kind in ("raw", "gt") for name in names}
    assert [patch.number for patch in patches[:9]] == [*(f"0_{octant}" for octant in range(8)), "1_0"]
    cubes = np.zeros((2, *shape)), np.zeros((2, *shape))
    for patch in patches:
        cube, octant = (int(part) for part in patch.number.split("_"))
        # octant = 4 * axis1 + 2 * axis0 + axis2 of the file's axes x, y, z
        y, x, z = octant // 4, octant // 2 % 2, octant % 2
        where = (cube, slice(10 * z, 10 * z + 10), slice(12 * y, 12 * y + 12), slice(14 * x, 14 * x + 14))
        assert read(patch.raw[0]).dtype == dtype
        cubes[0][where], cubes[1][where] = read(patch.raw[0]), read(patch.label)
    for number, phantom in enumerate(drawn):
        np.testing.assert_array_equal(cubes[0][number], phantom.image)
        np.testing.assert_array_equal(cubes[1][number], phantom.label)


def test_tree_of_whole_brains(tmp_path: Path) -> None:
    counts = {"AD_plaques": 1, "cfos_neuron": 1, "cell_nuclei": 1, "blood_vessel": 2}
    written = download.write_unannotated(tmp_path, counts, np.random.default_rng(0), shape_zyx=(12, 30, 40))
    top = tmp_path / "brain_microscopy_image" / "brain_microscopy_image"
    folders = {path.relative_to(top).as_posix() for path in top.glob("*/*/*")}
    assert folders == {
        "Ab_plaques/sample1/C01",
        "c-Fos_brain_cells/sample1/C01",
        "cell_nucleus/sample1/C01",
        "vessel/sample1/C00",
        "vessel/sample1/C01",
        "vessel/sample2/C00",
        "vessel/sample2/C01",
    }
    assert len(written) == 12 * len(folders)
    for folder in folders:
        visible = [path.name for path in (top / folder).iterdir() if not path.name.startswith("._")]
        endings = {name.rsplit("_", 1)[1] for name in visible}
        assert endings == {f"Z{z}.tif" for z in range(12)}
        assert any(path.name.startswith("._") and path.suffix == ".tif" for path in (top / folder).iterdir())


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_slices_are_the_brain(tmp_path: Path, compression: str | None) -> None:
    shape = (24, 60, 80)
    files = download.write_unannotated(
        tmp_path, {"cfos_neuron": 1}, np.random.default_rng(0), shape_zyx=shape, compression=compression
    )
    brain = np.stack([tifffile.imread(file) for file in files])
    assert brain.shape == shape
    assert brain.dtype == np.uint16
    assert np.median(brain[12, 25:35, 35:45]) > 3 * np.median(brain[:, :3, :3])


def test_the_seed_decides_what_is_written(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        download.write_annotated(tmp_path / name, {"cell_nuclei": 1}, np.random.default_rng(seed), shape_zyx=SMALL)
    first, again, other = (read(next((tmp_path / name).rglob("*_0000.nii.gz"))) for name in "abc")
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown layout 'zenodo': choose one of bioimage_archive"):
        download.write_annotated(tmp_path, {}, rng, layout="zenodo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'microglia': choose among blood_vessel"):
        download.write_annotated(tmp_path, {"microglia": 1}, rng)
    with pytest.raises(ValueError, match="even lengths are needed"):
        download.write_annotated(tmp_path, {"microglia": 1}, rng, shape_zyx=(15, 16, 16), layout="delivr")
    with pytest.raises(ValueError, match="no whole brains of structure 'microglia'"):
        download.write_unannotated(tmp_path, {"microglia": 1}, rng)
