"""Regions of an atlas whose answers are known by hand."""

import csv
import json
from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects import ObjectSettings, measure_objects, regions
from nnunet_selma.objects.atlas import Atlas, Overlay, open_atlas
from nnunet_selma.objects.regions import read_region_names, regions_of
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, write_box
from tests.conftest import write_image
from tests.objects.volumes import measured

SAMPLE_UM = (4.0, 2.0, 2.0)
ALONG = np.eye(3)
LEFT, RIGHT = 12, 614454277  # an id of the Allen atlas


@pytest.fixture
def sample(tmp_path):
    """40 × 60 × 80 voxels, 160 × 120 × 160 µm; cells of 2³ voxels, two on the left, one on the right, one in the background."""
    values = np.zeros((40, 60, 80), np.uint8)
    for z, y, x in ((10, 10, 10), (20, 40, 30), (20, 30, 60)):
        values[z : z + 2, y : y + 2, x : x + 2] = 1
    values[38:40, 58:60, 78:80] = 2
    return write_image(tmp_path / "labels.nii.gz", values)


def halves(shape, background=0):
    """Two halves along x, and the last slices along z background."""
    values = np.full(shape, LEFT, np.uint32)
    values[:, :, shape[2] // 2 :] = RIGHT
    values[shape[0] - shape[0] // 8 :] = background
    return values


def itk(path, values, spacing_xyz, origin=(0.0, 0.0, 0.0), direction=ALONG):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    image.SetDirection(np.ravel(direction).tolist())
    sitk.WriteImage(image, str(path))
    return path


def run(sample, path, **options):
    """The table of regions, and the summary."""
    output = path.parent / "cells.csv"
    settings = ObjectSettings(labels=sample, output=output, spacing_um_zyx=SAMPLE_UM, atlas=path, **options)
    summary = measure_objects(settings)
    with (path.parent / "cells_regions.csv").open(newline="") as file:
        table = {(int(row["region"]), int(row["label"])): row for row in csv.DictReader(file)}
    with output.open(newline="") as file:
        assert [int(row["region"]) for row in csv.DictReader(file)].count(0) == sum(
            int(row["objects"]) for (region, _), row in table.items() if region == 0
        )
    return table, summary


def check(table, mm3_left, mm3_right):
    """Two cells of class 1 on the left, one on the right, and one of class 2 outside, 8 voxels of 16 µm³ each."""
    assert list(table) == [(0, 1), (0, 2), (LEFT, 1), (LEFT, 2), (RIGHT, 1), (RIGHT, 2)]
    assert [int(row["objects"]) for row in table.values()] == [0, 1, 2, 0, 1, 0]
    assert (
        table[0, 2]["region_volume_mm3"]
        == table[0, 2]["objects_per_mm3"]
        == table[LEFT, 2]["mean_object_volume_um3"]
        == ""
    )
    assert table[0, 1]["name"] == "outside"
    for region, count, mm3 in ((LEFT, 2, mm3_left), (RIGHT, 1, mm3_right)):
        assert float(table[region, 1]["region_volume_mm3"]) == pytest.approx(mm3)
        assert float(table[region, 1]["objects_per_mm3"]) == pytest.approx(count / mm3)
        assert float(table[region, 1]["mean_object_volume_um3"]) == 8 * 16


HALF = 140 * 120 * 80 * 1e-9  # mm³ of each half: 14 of 16 slices of 10 µm


@pytest.mark.parametrize(("name", "unit"), [("atlas.nii.gz", 1.0), ("atlas.nii.gz", 1e-3), ("atlas.nrrd", 1.0)])
def test_an_atlas_over_the_same_field_of_view(name, unit, sample, tmp_path):
    """16 × 12 × 16 voxels of 10 µm, in µm and in mm."""
    path = itk(tmp_path / name, halves((16, 12, 16)), (10 * unit,) * 3)
    table, summary = run(sample, path)
    check(table, HALF, HALF)
    assert summary["notes"] == []


TURNS = [np.diag(signs)[list(axes)] for axes in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]


def covering(labels, direction, margin_um, edge_um=10.0):
    """Size (x, y, z) and origin of an atlas whose box is that of labels along the world's axes, and a margin."""
    extent = np.array(labels.shape[::-1]) * SAMPLE_UM[::-1]
    low, high = (-np.array(SAMPLE_UM[::-1]) / 2 - margin_um, extent - np.array(SAMPLE_UM[::-1]) / 2 + margin_um)
    corner = np.where(direction.sum(axis=1) > 0, low, high)  # of the first voxel, along the world's axes
    size = np.rint(np.abs(direction.T) @ (high - low) / edge_um).astype(int)
    return size, corner + direction @ np.full(3, edge_um / 2)


@pytest.mark.parametrize("direction", TURNS)
@pytest.mark.parametrize(("margin_um", "unit", "ending"), [(0.0, 1.0, "nrrd"), (30.0, 1e-3, "nii.gz")])
def test_headers_turn_an_atlas(direction, margin_um, unit, ending, rng, tmp_path):
    """The regions are those of `sitk.Resample`, for an atlas of any direction that lies where its header says; same size, and larger."""
    values = (rng.random((20, 40, 40)) < 0.02).astype(np.uint8)  # 80 × 80 × 80 µm
    values[2::5] = 0  # whose centres lie on edges of the atlas's voxels
    labels = itk(tmp_path / f"labels.{ending}", values, tuple(edge * unit for edge in SAMPLE_UM[::-1]))
    size, origin = covering(values, direction, margin_um)
    regions = rng.integers(1, 9, size[::-1], dtype=np.uint16)
    path = itk(tmp_path / f"atlas.{ending}", regions, (10.0 * unit,) * 3, (origin * unit).tolist(), direction)
    sample = open_volume(labels)
    atlas = open_atlas(path, sample=sample, sample_um_zyx=SAMPLE_UM, spacing_um_zyx=(10.0,) * 3)
    at = np.argwhere(values)
    resampled = sitk.Resample(
        sitk.ReadImage(str(path)), sitk.ReadImage(str(labels)), sitk.Transform(), sitk.sitkNearestNeighbor, 0
    )
    expected = sitk.GetArrayFromImage(resampled)[tuple(at.T)]
    assert (expected > 0).all()
    assert regions[tuple(atlas.voxels_at(at.astype(float)).T)].tolist() == expected.tolist()
    assert any("axes of the atlas run otherwise" in note for note in atlas.notes) != np.array_equal(direction, ALONG)


def test_headers_that_contradict_are_refused(sample, tmp_path):
    """Axes that are reversed beside the origin 0, as of a program that knows no place; axes that are tilted. Letters win."""
    turned = itk(tmp_path / "turned.nrrd", halves((16, 12, 16)), (10.0,) * 3, direction=np.diag([-1.0, -1.0, 1.0]))
    tilt = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    tilted = itk(tmp_path / "tilted.nrrd", halves((16, 12, 16)), (10.0,) * 3, direction=tilt)
    with pytest.raises(SelmaError, match=r"turned.nrrd: its axes run otherwise .* at different places"):
        run(sample, turned)
    with pytest.raises(SelmaError, match=r"tilted.nrrd: its axes are not parallel"):
        run(sample, tilted)
    for path in (turned, tilted):
        table, summary = run(sample, path, orientation="asr", atlas_orientation="asr")
        check(table, HALF, HALF)
        assert summary["notes"] == []
        assert (summary["orientation"], summary["atlas_orientation"]) == ("asr", "asr")
        assert summary["atlas_spacing_um_zyx"] == [10.0] * 3
        assert summary["label"] is None


def test_edges_of_voxels_lie_on_each_other():
    """A sample of 2 µm below an atlas of 10 µm: five voxels each, none beyond the last."""
    fine, coarse = (2.0, 2.0, 2.0), (10.0, 10.0, 10.0)
    over = Overlay(sample_um_zyx=fine, atlas_um_zyx=coarse, extent_um_zyx=(32.0, 32.0, 32.0))
    atlas = Atlas(volume=SimpleNamespace(shape=(3, 3, 3)), spacing_um_zyx=coarse, lies=over)
    voxels = atlas.voxels_at(np.repeat(np.arange(16.0)[:, None], 3, axis=1))
    assert voxels[:, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3]


def test_a_voxel_size_given_by_hand(sample, tmp_path):
    tifffile.imwrite(tmp_path / "atlas.tif", halves((16, 12, 16)), metadata=None)
    with pytest.raises(SelmaError, match=r"--atlas-spacing Z,Y,X"):
        run(sample, tmp_path / "atlas.tif")
    table, _ = run(sample, tmp_path / "atlas.tif", atlas_spacing_um_zyx=(10.0, 10.0, 10.0))
    check(table, HALF, HALF)


@pytest.mark.parametrize(
    ("unit", "atlas_name", "name"),
    [(1.0, "atlas.nrrd", "affine.tfm"), (1e-3, "atlas.nii.gz", "affine.mat")],
    ids=["µm", "mm"],
)
@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[[2, 0, 1]]], ids=["along", "turned", "permuted"]
)
def test_an_affine_transform(unit, atlas_name, name, direction, sample, tmp_path):
    """The sample lies in the atlas turned by a quarter, doubled in size, and moved: the answer is built by hand from that.

    A point p of the sample (x, y, z, µm) is 2 R p + t in the atlas, R a quarter turn about z.
    """
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    matrix, move = 2 * turn, np.array([300.0, -50.0, 70.0])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix.ravel().tolist())
    transform.SetTranslation((move * unit).tolist())
    sitk.WriteTransform(transform, str(tmp_path / name))
    # an atlas of 20 µm that covers the sample's place: each voxel looks back at the sample
    spacing, size = 20.0, 24
    corner = np.array([-50.0, -100.0, 0.0])
    origin = corner - direction.clip(max=0) @ np.full(3, spacing * (size - 1))  # so that all directions cover the same
    index = np.indices((size,) * 3)[::-1].reshape(3, -1)  # (x, y, z)
    at = origin[:, None] + direction @ (index * spacing)
    x, _, z = np.linalg.inv(matrix) @ (at - move[:, None])
    values = np.where(x < 80, LEFT, RIGHT)
    values[z > 140] = 0
    path = itk(
        tmp_path / atlas_name,
        values.reshape((size,) * 3).astype(np.uint32),
        (spacing * unit,) * 3,
        (origin * unit).tolist(),
        direction,
    )
    table, summary = run(sample, path, transform=tmp_path / name)
    voxel = spacing**3 * 1e-9  # volumes are those of the atlas, not of the sample
    check(table, (values == LEFT).sum() * voxel, (values == RIGHT).sum() * voxel)
    assert summary["notes"] == []


@pytest.mark.parametrize("unit", [1.0, 1e-3], ids=["µm", "mm"])
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_the_header_of_the_labels_says_where_they_lie(unit, ending, tmp_path, rng):
    """The regions are those of `sitk.Resample`, for labels whose axes point elsewhere, from another corner, in another unit than the atlas."""
    values = (rng.random((12, 14, 16)) < 0.02).astype(np.uint8)
    direction = np.diag([-1.0, -1.0, 1.0])[[1, 0, 2]]
    labels = itk(
        tmp_path / f"labels.{ending}",
        values,
        (20 * unit, 30 * unit, 40 * unit),
        (410 * unit, 470 * unit, 25 * unit),
        direction,
    )
    path = itk(tmp_path / "atlas.nrrd", rng.integers(1, 9, (20, 20, 20), dtype=np.uint16), (30.0, 30.0, 30.0))
    transform = sitk.AffineTransform(3)  # from the header's unit to the atlas's
    transform.SetMatrix((np.eye(3) / unit).ravel().tolist())
    transform.SetTranslation((7.0, 3.0, -2.0))
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    resampled = sitk.Resample(
        sitk.ReadImage(str(path)), sitk.ReadImage(str(labels)), transform, sitk.sitkNearestNeighbor, 0
    )
    measure_objects(
        ObjectSettings(
            labels=labels, output=tmp_path / "cells.csv", atlas=path, transform=tmp_path / "t.tfm", max_voxels=1
        )
    )
    with (tmp_path / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20
    expected = sitk.GetArrayFromImage(resampled)
    at = [tuple(round(float(row[f"centroid_{axis}"])) for axis in "zyx") for row in rows]
    assert [int(row["region"]) for row in rows] == [expected[voxel] for voxel in at]


def test_a_composite_with_a_displacement_field(sample, tmp_path):
    """The field moves everything by 80 µm along x, so that what was left is right."""
    field = sitk.GetImageFromArray(np.broadcast_to([80.0, 0.0, 0.0], (5, 5, 5, 3)).copy(), isVector=True)
    field.SetSpacing((50.0, 50.0, 50.0))
    warp = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    composite = sitk.CompositeTransform([sitk.TranslationTransform(3, (0.0, 0.0, 0.0)), warp])
    sitk.WriteTransform(composite, str(tmp_path / "warp.h5"))
    path = itk(tmp_path / "atlas.nrrd", halves((16, 12, 16)), (10.0,) * 3)
    table, _ = run(sample, path, transform=tmp_path / "warp.h5")
    # 10 + 80 and 61 + 80 µm are right of 80; 121 + 80 lies beyond the atlas
    assert [int(table[r, 1]["objects"]) for r in (0, LEFT, RIGHT)] == [1, 0, 2]


def test_an_atlas_that_lies_elsewhere_is_noted(sample, tmp_path):
    path = itk(tmp_path / "atlas.nrrd", halves((16, 12, 16)), (10.0,) * 3)
    sitk.WriteTransform(sitk.TranslationTransform(3, (1e4, 0.0, 0.0)), str(tmp_path / "away.tfm"))
    table, summary = run(sample, path, transform=tmp_path / "away.tfm")
    assert int(table[0, 1]["objects"]) == 3
    assert "no object lies in a region" in summary["notes"][0]
    _, summary = run(sample, itk(tmp_path / "small.nrrd", halves((16, 12, 8)), (10.0,) * 3))
    assert "the atlas measures 160 × 120 × 80 µm (z, y, x), the sample 160 × 120 × 160" in summary["notes"][0]


def test_pieces_give_what_the_whole_gives(rng, tmp_path, monkeypatch):
    values = rng.integers(0, 5, (9, 8, 7), dtype=np.uint16)
    grid = SimpleNamespace(shape=(18, 16, 14), spacing_um_zyx=None, origin_voxels_zyx=None, affine=None)
    atlas = open_atlas(itk(tmp_path / "atlas.mha", values, (10.0,) * 3), sample=grid, sample_um_zyx=(5.0, 5.0, 5.0))
    objects = measured((rng.random((18, 16, 14)) < 0.03).astype(np.uint8), (18, 16, 14))[0]
    whole = regions_of(atlas, objects)
    monkeypatch.setattr(regions, "_PIECE_BYTES", 300)
    pieces = regions_of(atlas, objects)
    np.testing.assert_array_equal(whole[0], pieces[0])
    assert whole[1] == pieces[1] == {i: (values == i).sum() for i in range(5)}
    at = np.floor((objects.centroid + 0.5) / 2).astype(int)
    np.testing.assert_array_equal(whole[0], values[tuple(at.T)])


def test_names_of_regions(sample, tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("\ufeffid,acronym,name\n12,L,left\n614454277,R,right\n", encoding="utf-8")
    path = itk(tmp_path / "atlas.nrrd", halves((16, 12, 16)), (10.0,) * 3)
    table, _ = run(sample, path, region_names=names)
    assert [table[r, 1]["name"] for r in (0, LEFT, RIGHT)] == ["outside", "left", "right"]
    names.write_text("id,acronym\n12,L\n")
    with pytest.raises(SelmaError, match="has no column name"):
        read_region_names(names)
    names.write_text("id,name\ntwelve,left\n")
    with pytest.raises(SelmaError, match="is no table of region numbers"):
        read_region_names(names)


def test_what_is_wrong_with_an_atlas(sample, tmp_path):
    path = itk(tmp_path / "atlas.nrrd", halves((16, 12, 16)), (10.0,) * 3)
    (tmp_path / "no.tfm").write_text("nothing")
    with pytest.raises(SelmaError, match=r"no.tfm: ITK reads no transform"):
        run(sample, path, transform=tmp_path / "no.tfm")
    with pytest.raises(SelmaError, match=r"missing.tfm: there is no such file"):
        run(sample, path, transform=tmp_path / "missing.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(2, (1.0, 0.0)), str(tmp_path / "flat.tfm"))
    with pytest.raises(SelmaError, match="points of 2 axes"):
        run(sample, path, transform=tmp_path / "flat.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(3, (0.0, 0.0, 0.0)), str(tmp_path / "t.tfm"))
    with pytest.raises(SelmaError, match="other proportions than the header"):
        run(sample, path, transform=tmp_path / "t.tfm", atlas_spacing_um_zyx=(20.0, 10.0, 10.0))
    ones = itk(tmp_path / "ones.nrrd", halves((16, 12, 16)), (1.0,) * 3)
    with pytest.raises(SelmaError, match="does not say how large its voxels are"):
        run(sample, ones)
    table, _ = run(sample, ones, transform=tmp_path / "t.tfm", atlas_spacing_um_zyx=(10.0, 10.0, 10.0))
    assert int(table[LEFT, 1]["objects"]) == 2
    fractions = itk(tmp_path / "fractions.nrrd", halves((16, 12, 16)) / 7, (10.0,) * 3)
    with pytest.raises(SelmaError, match="holds fractions"):
        run(sample, fractions)


def zarr_at(path, values, spacing, origin_voxels):
    layout = ImageLayout(
        shape=values.shape,
        dtype=values.dtype,
        spacing_um_zyx=spacing,
        origin_voxels_zyx=origin_voxels,
        shard_zyx=values.shape,
        chunk_zyx=values.shape,
        reduction="nearest",
        name="labels",
        label_colours={},
    )
    create_image(path, layout)
    write_box(path, (0, 0, 0), values)
    return path


def test_a_crop_lies_in_the_atlas_of_the_whole(rng, tmp_path):
    """Both files say where they lie: the crop begins at voxel (8, 10, 12) of the whole, whose atlas has voxels of 2³."""
    regions = rng.integers(1, 200, (10, 12, 14), dtype=np.uint16)
    cells = np.zeros((8, 8, 8), np.uint8)
    cells[::2, ::2, ::2] = 1
    atlas = zarr_at(tmp_path / "atlas.ome.zarr", regions, (8.0, 8.0, 8.0), (0.25, 0.25, 0.25))  # half a fine voxel
    crop = zarr_at(tmp_path / "crop.ome.zarr", cells, (4.0, 4.0, 4.0), (8.0, 10.0, 12.0))
    summary = measure_objects(ObjectSettings(labels=crop, output=tmp_path / "cells.csv", atlas=atlas))
    with (tmp_path / "cells.csv").open(newline="") as file:
        counted = [int(row["region"]) for row in csv.DictReader(file)]
    at = np.add(np.argwhere(cells), (8, 10, 12)) // 2
    assert counted == regions[tuple(at.T)].tolist()
    assert any("laid by the places that their files state, " in note for note in summary["notes"])


def test_places_that_contradict_equal_sizes_are_noted(sample, tmp_path):
    path = itk(tmp_path / "atlas.nrrd", halves((16, 12, 16)), (10.0,) * 3, origin=(70.0, 0.0, 30.0))
    table, summary = run(sample, path)
    check(table, HALF, HALF)
    assert "state different places, 30 × 0 × 70 µm apart (z, y, x), and measure the same" in summary["notes"][0]


def test_labels_that_were_predicted_from_a_nifti_lie_where_it_lies(rng, tmp_path):
    """The regions through a transform are those of the NIfTI, whose unit is mm, beside an atlas in µm."""
    values = (rng.random((12, 14, 16)) < 0.02).astype(np.uint8)
    direction = np.diag([-1.0, -1.0, 1.0])[[1, 0, 2]]
    nifti = itk(tmp_path / "labels.nii.gz", values, (0.02, 0.03, 0.04), (0.41, 0.47, 0.025), direction)
    volume = open_volume(nifti)
    inside = zarr_at(tmp_path / "labels.ome.zarr", values, volume.spacing_um_zyx, volume.origin_voxels_zyx)
    content = json.loads((inside / "zarr.json").read_text())
    content["attributes"]["nnunet_selma"] = {"affine": volume.affine.tolist()}
    (inside / "zarr.json").write_text(json.dumps(content))
    path = itk(tmp_path / "atlas.nrrd", rng.integers(1, 9, (20, 20, 20), dtype=np.uint16), (30.0, 30.0, 30.0))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((np.eye(3) * 1e3).ravel().tolist())
    transform.SetTranslation((7.0, 3.0, -2.0))
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    regions = {}
    for labels in (nifti, inside):
        table = tmp_path / "cells.csv"
        measure_objects(ObjectSettings(labels=labels, output=table, atlas=path, transform=tmp_path / "t.tfm"))
        with table.open(newline="") as file:
            regions[labels] = [row["region"] for row in csv.DictReader(file)]
    assert regions[nifti] == regions[inside]
    assert len(set(regions[nifti])) > 3
