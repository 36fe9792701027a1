import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr

from nnunet_selma.conversion.inspection import inspect
from nnunet_selma.conversion.tiles import TileSettings
from nnunet_selma.conversion.unannotated import UnannotatedSettings, convert_unannotated
from nnunet_selma.conversion.volume_tree import find_volumes
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import named
from tests.conftest import write_image
from tests.plans import plans
from tests.volumes.microscope_files import write_bdv

TILES = TileSettings(tile=16, per_volume=3)


def write_stack(folder, voxels):
    folder.mkdir(parents=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"img_Z{z}.tif", plane)


@pytest.fixture
def download(tmp_path, rng):
    """The tree of the challenge, its top folder doubled by unzipping."""
    top = tmp_path / "brain_microscopy_image" / "brain_microscopy_image"
    voxels = {}
    for name in ("vessel/sample1/C00", "vessel/sample1/C01", "cell_nucleus/sample2/C01"):
        brain = rng.normal(100, 5, (32, 48, 48))
        brain[:, 8:40, 8:40] += 500 + 400 * rng.random((32, 32, 32))
        voxels[name] = brain.astype(np.uint16)
        write_stack(top / name, voxels[name])
        (top / name / "._img_Z0.tif").write_bytes(b"x")
    return tmp_path / "brain_microscopy_image", voxels


def test_the_tree_of_the_challenge(download):
    source, _ = download
    found = {v.name: [p.parent.parent.name + p.name for p in v.channels] for v in find_volumes(source)}
    assert found == {
        "blood_vessel_sample1_wga": ["vesselC00"],
        "blood_vessel_sample1_eb": ["vesselC01"],
        "cell_nuclei_sample2": ["cell_nucleusC01"],
    }


@pytest.mark.parametrize(("mode", "names"), [("eb", ["blood_vessel_sample1_eb"]), ("both", ["blood_vessel_sample1"])])
def test_vessel_channels(mode, names, download):
    volumes = find_volumes(download[0], vessel_channels=mode, structures=("blood_vessel",))
    assert [v.name for v in volumes] == names


def test_tiles_become_cases_with_the_tissue_as_label(download, folders):
    source, voxels = download
    manifest = convert_unannotated(source, UnannotatedSettings(tiles=TILES), folders)
    dataset = folders.raw / "Dataset500_SELMA3Dunlabelled"
    assert json.loads((dataset / "dataset.json").read_text())["labels"] == {"background": 0, "tissue": 1}
    assert len(manifest["cases"]) == 9
    for name, record in manifest["cases"].items():
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "imagesTr" / f"{name}_0000.nii.gz")))
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr" / f"{name}.nii.gz")))
        z, y, x = record["start_zyx"]
        stack = {"wga": "vessel/sample1/C00", "eb": "vessel/sample1/C01"}.get(
            name.split("_")[3], "cell_nucleus/sample2/C01"
        )
        np.testing.assert_array_equal(image, voxels[stack][z : z + 16, y : y + 16, x : x + 16])
        assert name.endswith(f"z{z:05d}_y{y:05d}_x{x:05d}")
        assert 0.1 <= label.mean() == pytest.approx(record["foreground_share"])


@pytest.mark.parametrize(("stage", "steps"), [("finding tissue", 1), ("converting slices", 40)])
def test_a_killed_run_goes_on_with_the_same_tiles(download, folders, stage, steps):
    source, _ = download

    def killed(items, label):
        yield from items[:steps] if label == stage else items
        if label == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_unannotated(source, UnannotatedSettings(tiles=TILES), folders, killed)
    assert not list(folders.raw.glob("Dataset*"))
    again = convert_unannotated(source, UnannotatedSettings(tiles=TILES), folders)
    other = convert_unannotated(source, UnannotatedSettings(tiles=TILES, dataset_id=501), folders)
    assert list(again["cases"]) == list(other["cases"])
    assert again["cases"] == other["cases"]


def test_single_volumes_and_physical_spacing(tmp_path, rng, folders):
    voxels = (1000 + 100 * rng.random((20, 20, 20))).astype(np.uint16)
    write_image(tmp_path / "some" / "brain A.nii.gz", voxels, (0.002, 0.0018, 0.0018))
    (volume,) = find_volumes(tmp_path / "some", structure=named("astrocyte"))
    assert volume.name == "astrocyte_brain-A"
    manifest = convert_unannotated(
        tmp_path / "some", UnannotatedSettings(structure="astrocyte", spacing="physical", tiles=TILES), folders
    )
    assert next(iter(manifest["cases"].values()))["spacing_zyx"] == pytest.approx([2.0, 1.8, 1.8])
    (direct,) = find_volumes(tmp_path / "some" / "brain A.nii.gz")
    assert direct.name == "volume_brain-A"


def test_annotated_patches_are_not_taken_for_volumes_unless_asked_for(tmp_path, rng, download):
    source, _ = download
    for folder in ("raw", "gt"):
        write_image(source / "cFos" / folder / "patchvolume_1_0.nii.gz", rng.integers(0, 9, (8, 8, 8), dtype=np.uint16))
    assert len(find_volumes(source)) == 3
    assert [v.name for v in find_volumes(source / "cFos" / "raw")] == ["cfos_neuron_patchvolume-1-0"]


def test_both_channels_of_a_structure_with_one_stain_have_names_of_their_own(tmp_path, rng):
    for channel in ("C00", "C01"):
        write_stack(
            tmp_path / "c-Fos_brain_cells" / "sample1" / channel, rng.integers(0, 9, (4, 8, 8), dtype=np.uint16)
        )
    assert [v.name for v in find_volumes(tmp_path)] == [
        "cfos_neuron_sample1_C00",
        "cfos_neuron_sample1_C01",
    ]


def test_a_volume_scaled_to_one_finds_the_same_tissue(tmp_path, rng, folders):
    brain = rng.normal(100, 5, (32, 64, 64))
    brain[:, 32:, 32:] += 900 + 300 * rng.random((32, 32, 32))
    for name, voxels in (
        ("counts", brain.astype(np.uint16)),
        ("scaled", (brain.astype(np.uint16) / 65535).astype(np.float32)),
    ):
        write_image(tmp_path / name / "v.nii.gz", voxels)
    starts = []
    for number, name in ((500, "counts"), (501, "scaled")):
        manifest = convert_unannotated(
            tmp_path / name,
            UnannotatedSettings(dataset_id=number, spacing="voxel", tiles=TileSettings(tile=32, per_volume=9)),
            folders,
        )
        starts.append([(c["start_zyx"], round(c["foreground_share"], 2)) for c in manifest["cases"].values()])
    assert starts[0] == starts[1] == [([0, 32, 32], 1.0)]


def test_a_folder_of_tiff_files_with_many_pages_is_no_stack(tmp_path, rng):
    for name in ("a1", "a2"):
        tifffile.imwrite(tmp_path / f"{name}.tif", rng.integers(0, 9, (8, 8, 8), dtype=np.uint16))
    assert [v.name for v in find_volumes(tmp_path)] == ["volume_a1", "volume_a2"]


def test_a_missing_slice_stops_or_is_interpolated_and_recorded(download, folders):
    source, _ = download
    next(source.rglob("cell_nucleus/sample2/C01/img_Z5.tif")).unlink()
    with pytest.raises(SelmaError, match=r"sample2.*img_Z4.tif"):
        convert_unannotated(source, UnannotatedSettings(tiles=TILES), folders)
    assert not list(folders.raw.iterdir())
    manifest = convert_unannotated(source, UnannotatedSettings(tiles=TILES, on_bad_slice="interpolate"), folders)
    assert manifest["volumes"]["cell_nuclei_sample2"]["interpolated_slices"] == ["number 5 (missing)"]


def test_nothing_but_background(tmp_path, folders):
    write_image(tmp_path / "in" / "v.nii.gz", np.full((16, 16, 16), 100, np.uint16))
    with pytest.raises(SelmaError, match="lower --min-foreground"):
        convert_unannotated(tmp_path / "in", UnannotatedSettings(spacing="voxel", tiles=TILES), folders)


@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_write_the_same(download, folders, monkeypatch, workers):
    monkeypatch.setattr("nnunet_selma.conversion.unannotated._WORTH_PROCESSES", 0)
    source, _ = download
    next(source.rglob("cell_nucleus/sample2/C01/img_Z5.tif")).unlink()
    settings = UnannotatedSettings(tiles=TILES, on_bad_slice="interpolate")
    alone = convert_unannotated(source, settings, folders)
    together = convert_unannotated(source, replace(settings, dataset_id=501), folders, workers=workers)
    assert together["cases"] == alone["cases"]
    assert together["volumes"] == alone["volumes"]
    for path in (folders.raw / "Dataset500_SELMA3Dunlabelled" / "imagesTr").iterdir():
        other = folders.raw / "Dataset501_SELMA3Dunlabelled" / "imagesTr" / path.name
        assert sitk.ReadImage(str(path)) == sitk.ReadImage(str(other))


def brain_with_header(rng, spacing=(0.002, 0.0008, 0.0008)):
    voxels = rng.normal(100, 5, (20, 24, 28))
    voxels[4:16, 4:20, 4:24] += 500 + 400 * rng.random((12, 16, 20))
    return voxels.astype(np.uint16), spacing


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        (None, (2, 0.8, 0.8)),
        ("header", (2, 0.8, 0.8)),
        ("physical", (2, 0.8, 0.8)),
        ("voxel", (1, 1, 1)),
        ((4.0, 3.0, 2.0), (4, 3, 2)),
    ],
)
def test_data_of_a_laboratory_have_the_voxel_size_of_their_header(spacing, expected, tmp_path, rng, folders):
    """The folder is called like a structure of the table, whose voxel size is another."""
    voxels, header = brain_with_header(rng)
    write_image(tmp_path / "in" / "vessel" / "mouse1" / "brain.nii.gz", voxels, header)
    manifest = convert_unannotated(tmp_path / "in", UnannotatedSettings(spacing=spacing, tiles=TILES), folders)
    for record in manifest["cases"].values():
        assert record["spacing_zyx"] == pytest.approx(expected)
    assert record["structure"] == "blood_vessel"


def test_a_structure_that_the_user_names_wins_over_a_folder(tmp_path, rng, folders):
    voxels, header = brain_with_header(rng)
    write_image(tmp_path / "protein" / "2024" / "brain.nii.gz", voxels, header)
    for number, (structure, prefix) in enumerate({"microglia": "microglia", "TH": "TH", None: "protein"}.items(), 500):
        settings = UnannotatedSettings(dataset_id=number, structure=structure, tiles=TILES)
        manifest = convert_unannotated(tmp_path / "protein" / "2024", settings, folders)
        assert {case["structure"] for case in manifest["cases"].values()} == {prefix}
        assert all(case.startswith(f"{prefix}_brain_") for case in manifest["cases"])


@pytest.mark.parametrize("unit", ["micrometer", None])
def test_a_coarser_level_has_larger_voxels(unit, tmp_path, rng, folders):
    voxels, _ = brain_with_header(rng)
    voxels = voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for number, folder in enumerate(("mine", "cFos-Active_Neurons/sample1")):
        path = tmp_path / str(number) / folder / ("C01" if number else "b.ome.zarr")
        write_zarr(path, [voxels, voxels[:, ::2, ::2], voxels[::2, ::4, ::4]], unit)
        settings = UnannotatedSettings(dataset_id=500 + number, level=1, tiles=TILES)
        manifest = convert_unannotated(tmp_path / str(number), settings, folders)
        (size,) = {tuple(case["spacing_zyx"]) for case in manifest["cases"].values()}
        assert size == pytest.approx((6, 3.25, 3.25))
    given = replace(settings, dataset_id=510, spacing=(2.0, 1.0, 1.0))
    (size,) = {tuple(c["spacing_zyx"]) for c in convert_unannotated(tmp_path / "0", given, folders)["cases"].values()}
    assert size == pytest.approx((2, 2, 2))


def write_zarr(path, levels, unit):
    """An OME-Zarr of version 0.4, voxels of 6 × 1.625 × 1.625 at the finest level."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    datasets = []
    for number, voxels in enumerate(levels):
        group.create_array(str(number), data=voxels, chunks=(16, 16, 16))
        factors = np.array(levels[0].shape) / voxels.shape
        scale = [float(edge) for edge in factors * (6, 1.625, 1.625)]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def test_stains_become_named_input_channels(tmp_path, rng, folders):
    voxels = [brain_with_header(rng)[0] for _ in range(2)]
    write_stack(tmp_path / "folders" / "mouse1" / "C00", voxels[0])
    write_stack(tmp_path / "folders" / "mouse1" / "C01", voxels[1])
    pages = tmp_path / "pages" / "mouse1.tif"
    pages.parent.mkdir()
    tifffile.imwrite(pages, np.stack(voxels, axis=1), imagej=True, metadata={"axes": "ZCYX"})
    for number, source in enumerate(("folders", "pages"), 500):
        settings = UnannotatedSettings(
            dataset_id=number, stains=("TH", "autofluorescence"), spacing="voxel", tiles=replace(TILES, tile=20)
        )
        manifest = convert_unannotated(tmp_path / source, settings, folders)
        dataset = folders.raw / f"Dataset{number}_SELMA3Dunlabelled"
        names = json.loads((dataset / "dataset.json").read_text())["channel_names"]
        assert names == {"0": "TH", "1": "autofluorescence"}
        for case, record in manifest["cases"].items():
            z, y, x = record["start_zyx"]
            for channel in (0, 1):
                image = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / f"imagesTr/{case}_{channel:04d}.nii.gz")))
                np.testing.assert_array_equal(image, voxels[channel][z : z + 20, y : y + 20, x : x + 20])
    for source in ("folders", "pages"):
        with pytest.raises(SelmaError, match="2 channels, and --stains names 3; name each"):
            convert_unannotated(tmp_path / source, replace(settings, dataset_id=502, stains=("a", "b", "c")), folders)
    with pytest.raises(SelmaError, match="2 channels, and --stains names 1; name each"):
        convert_unannotated(tmp_path / "pages", replace(settings, dataset_id=502, stains=("a",)), folders)


def test_two_copies_of_a_brain_are_no_stains(tmp_path, rng, folders):
    voxels, header = brain_with_header(rng)
    write_image(tmp_path / "in" / "mouse1.nii.gz", voxels, header)
    write_image(tmp_path / "in" / "mouse1.nrrd", voxels, header)
    with pytest.raises(SelmaError, match="would both be volume_mouse1"):
        convert_unannotated(tmp_path / "in", UnannotatedSettings(stains=("TH", "auto")), folders)


def test_a_coarser_level_is_not_measured_in_voxels(tmp_path, rng, folders):
    voxels, _ = brain_with_header(rng)
    write_zarr(tmp_path / "in" / "b.ome.zarr", [voxels, voxels[::2, ::2, ::2]], "micrometer")
    with pytest.raises(SelmaError, match="in voxels of a coarser level everything looks smaller"):
        convert_unannotated(tmp_path / "in", UnannotatedSettings(level=1, spacing="voxel", tiles=TILES), folders)


def test_masks_are_left_out_and_listed(tmp_path, rng, folders):
    voxels, header = brain_with_header(rng)
    write_image(tmp_path / "in" / "brain.nii.gz", voxels, header)
    write_image(tmp_path / "in" / "tissue.nii.gz", (voxels > 300).astype(np.uint8))
    write_image(
        tmp_path / "in" / "labels" / "cells.nii.gz", (voxels > 300) * rng.integers(0, 9, voxels.shape, np.uint16)
    )
    manifest = convert_unannotated(tmp_path / "in", UnannotatedSettings(tiles=TILES), folders)
    assert list(manifest["volumes"]) == ["volume_brain"]
    reasons = {group["reason"]: (group["files"], Path(group["first"][0]).name) for group in manifest["passed_by"]}
    assert reasons == {
        "masks or labels by their names": (1, "cells.nii.gz"),
        "only two values, 0 and another, as a mask has": (1, "tissue.nii.gz"),
    }


def test_a_source_that_was_changed_is_not_taken_for_converted(tmp_path, rng, folders):
    voxels, _ = brain_with_header(rng)
    write_stack(tmp_path / "in" / "brain", voxels)
    settings = UnannotatedSettings(spacing="voxel", tiles=TILES)
    manifest = convert_unannotated(tmp_path / "in", settings, folders)
    assert convert_unannotated(tmp_path / "in", settings, folders) == manifest
    tifffile.imwrite(tmp_path / "in" / "brain" / "img_Z7.tif", voxels[7] + 1)
    with pytest.raises(SelmaError, match="made from other files"):
        convert_unannotated(tmp_path / "in", settings, folders)


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from nnunet_selma.conversion import preprocessed_dataset, tile_slabs
from nnunet_selma.conversion.unannotated import StoreSettings, UnannotatedSettings, convert_unannotated
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.conversion.inspection import inspect
from nnunet_selma.conversion.tiles import TileSettings

source, root, to, limit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
tile_slabs.SLAB_TILE_BYTES = 2**23
def size(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
used = size("VmSize")
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
before = size("VmHWM")
convert_unannotated(
    source, UnannotatedSettings(structure="astrocyte", spacing="voxel", tiles=TileSettings(tile=64, per_volume=6, min_foreground=0)),
    Folders(raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results"),
    store=StoreSettings(plans_from=510) if to == "preprocessed" else None,
)
print(size("VmHWM") - before)
"""
_PLANE = (1536, 1024)
_ALLOWED = 160 * 2**20


def deep_stack(folder, rng, depth):
    """3 MB a slice in memory, little on disk."""
    folder.mkdir(parents=True)
    plane = np.full(_PLANE, 100, np.uint16)
    plane[:, 200:700] += rng.integers(300, 900, (_PLANE[0], 500), dtype=np.uint16)
    tifffile.imwrite(folder / "z0000.tif", plane, compression="zlib")
    for z in range(1, depth):
        (folder / f"z{z:04d}.tif").hardlink_to(folder / "z0000.tif")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits on the address space")
@pytest.mark.parametrize("to", ["raw", "preprocessed"])
def test_memory_does_not_grow_with_the_stack(tmp_path, rng, to):
    """A stack five times the allowed memory is converted under a hard limit, and one eight times as deep needs no more."""
    used = {}
    for depth, limit in ((64, 0), (512, 0), (256, _ALLOWED)):
        root = tmp_path / f"{depth}_{limit}"
        (root / "preprocessed" / "Dataset510_A").mkdir(parents=True)
        (root / "raw").mkdir()
        write_json(root / "preprocessed" / "Dataset510_A" / "nnUNetPlans.json", plans())
        source = deep_stack(root / "in", rng, depth)
        if limit:
            assert depth * _PLANE[0] * _PLANE[1] * 2 > 4.5 * limit
        done = subprocess.run(
            [sys.executable, "-c", IN_LITTLE_MEMORY, str(source), str(root), to, str(limit)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        used[depth] = int(done.stdout.split()[-1]) / 10**6
    assert used[512] < used[64] + 20  # MB


def test_a_single_slice_is_a_question(folders, tmp_path, rng):
    """A stack whose copy broke off may look like one slice."""
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "brain.tif", rng.integers(0, 999, (64, 64), dtype=np.uint16))
    for source in (tmp_path / "in", tmp_path / "in" / "brain.tif"):
        with pytest.raises(SelmaError, match="is a single slice, and a volume has several"):
            convert_unannotated(source, UnannotatedSettings(), folders)
        (problem,) = inspect(source).problems
        assert "is a single slice" in problem


def earlier(manifest_file, *names):
    """Take settings out of a manifest, which an earlier version did not have."""
    content = read_json(manifest_file)
    assert [content["settings"].pop(name) for name in names] == [None] * len(names)
    write_json(manifest_file, content)


def test_a_dataset_of_an_earlier_version_is_complete(tmp_path, rng, folders):
    voxels, _ = brain_with_header(rng)
    write_stack(tmp_path / "in" / "brain", voxels)
    settings = UnannotatedSettings(spacing="voxel", tiles=TILES)
    manifest = convert_unannotated(tmp_path / "in", settings, folders)
    (file,) = folders.raw.glob("Dataset500*/selma_manifest.json")
    earlier(file, "scene", "time")
    assert convert_unannotated(tmp_path / "in", settings, folders)["cases"] == manifest["cases"]
    with pytest.raises(SelmaError, match="other settings"):
        convert_unannotated(tmp_path / "in", replace(settings, time=0), folders)


def test_changed_voxels_beside_an_xml_are_noticed(tmp_path, rng, folders):
    h5py = pytest.importorskip("h5py")
    voxels, _ = brain_with_header(rng)
    xml = write_bdv(tmp_path / "brain.h5", [voxels], spacing_um_zyx=(2.0, 2.0, 2.0), levels=1)
    settings = UnannotatedSettings(spacing="voxel", tiles=TILES)
    manifest = convert_unannotated(xml, settings, folders)
    assert convert_unannotated(xml, settings, folders)["cases"] == manifest["cases"]
    with h5py.File(tmp_path / "brain.h5", "a") as file:
        file["t00000/s00/0/cells"][7] += 1
    with pytest.raises(SelmaError, match="made from other files"):
        convert_unannotated(xml, settings, folders)
