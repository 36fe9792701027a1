"""Atlases that brainreg registered, against stacks of other orientations; the real brain against flips by hand."""

import csv
import json
import os
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects import ObjectSettings, measure_objects
from nnunet_selma.objects.atlas import open_atlas
from nnunet_selma.objects.brainreg import brainreg_output
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.orientation import turn_between

ORIENTATIONS = ["".join(letters) for axes in permutations(("ap", "si", "lr")) for letters in product(*axes)]
STACK_UM, ATLAS_UM = (50.0, 40.0, 40.0), (100.0, 100.0, 100.0)
RECORDS = [
    {"voxel_sizes": ["50", "40", "40"], "orientation": "psl", "atlas": "allen_mouse_100um"},
    {"z_pixel_um": 50.0, "y_pixel_um": 40.0, "x_pixel_um": 40.0, "orientation": "psl", "atlas": "allen_mouse_100um"},
]


def test_there_are_48_orientations_and_turns_undo_each_other():
    assert len(set(ORIENTATIONS)) == 48
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for target in ORIENTATIONS:
        there, back = turn_between("psl", target), turn_between(target, "psl")
        turned = turned_by_hand(values, there)
        np.testing.assert_array_equal(turned_by_hand(turned, back), values)


def turned_by_hand(values, turn):
    values = values.transpose(turn.axes)
    return np.flip(values, [axis for axis, flip in enumerate(turn.flips) if flip])


def test_turns_that_are_known():
    """brainreg's test brain is flipped along the axes 0 and 2 (README of the data)."""
    assert turn_between("psl", "asr") == ((0, 1, 2), (True, False, True))
    assert turn_between("ASR", "asr") == ((0, 1, 2), (False, False, False))
    # the first axis of sla runs from superior, the second from left, the third from anterior
    assert turn_between("sla", "asr") == ((2, 0, 1), (False, False, True))


@pytest.mark.parametrize("letters", ["", "ps", "psll", "ppl", "psa", "xyz", "psl "])
def test_words_that_are_no_orientation(letters):
    with pytest.raises(SelmaError, match="give three letters"):
        turn_between(letters, "asr")


@pytest.fixture
def stack(tmp_path, rng):
    """Labels (40, 20, 30) whose voxels are objects of their own, and an atlas of half the resolution in asr, with the regions at the labels."""
    values = np.zeros((40, 20, 30), np.uint8)
    values[::3, ::5, ::5] = 1  # no centre lies on the edge of a voxel of the atlas
    folder = tmp_path / "stack"
    folder.mkdir()
    for z, plane in enumerate(values):
        tifffile.imwrite(folder / f"z{z:03d}.tif", plane)
    numbers = rng.integers(1, 2**31, 16, dtype=np.uint32)  # more would look like an image
    regions = rng.choice(numbers, (20, 8, 12))  # psl
    output = tmp_path / "registered"
    output.mkdir()
    tifffile.imwrite(output / "registered_atlas.tiff", regions[::-1, :, ::-1], metadata=None)
    # 2000 × 800 × 1200 µm
    at = np.argwhere(values)
    voxels = np.floor((at + 0.5) * STACK_UM / ATLAS_UM).astype(int)
    return folder, output, regions[tuple(voxels.T)]


def run(labels, tmp_path, **options):
    summary = measure_objects(ObjectSettings(labels=labels, output=tmp_path / "cells.csv", **options))
    with (tmp_path / "cells.csv").open(newline="") as file:
        return [int(row["region"]) for row in csv.DictReader(file)], summary


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("name", ["", "registered_atlas.tiff"])
def test_a_folder_says_orientation_and_voxel_sizes(record, name, stack, tmp_path):
    labels, output, expected = stack
    (output / "brainreg.json").write_text(json.dumps(record))
    regions, summary = run(labels, tmp_path, atlas=output / name)
    assert regions == expected.tolist()
    assert any("the stack that brainreg registered (psl), the atlas as asr" in note for note in summary["notes"])
    assert any("taken from brainreg's record: 50, 40, 40 µm" in note for note in summary["notes"])


def test_orientations_by_hand(stack, tmp_path):
    labels, output, expected = stack
    given = {"spacing_um_zyx": STACK_UM, "atlas_spacing_um_zyx": ATLAS_UM}
    regions, summary = run(labels, tmp_path, atlas=output / "registered_atlas.tiff", orientation="psl", **given)
    assert regions == expected.tolist()
    assert summary["notes"] == []
    other = tmp_path / "annotation.tif"
    other.write_bytes((output / "registered_atlas.tiff").read_bytes())
    regions, _ = run(labels, tmp_path, atlas=other, orientation="psl", atlas_orientation="asr", **given)
    assert regions == expected.tolist()
    with pytest.raises(SelmaError, match="give --orientation and --atlas-orientation"):
        run(labels, tmp_path, atlas=other, orientation="psl", **given)


@pytest.mark.parametrize("record", [None, RECORDS[0]])
def test_an_atlas_in_the_original_orientation_is_not_turned(record, stack, tmp_path):
    """`registered_atlas_original_orientation.tiff` lies as the stack, and needs no letters."""
    labels, output, expected = stack
    path = output / "registered_atlas_original_orientation.tiff"
    turned = tifffile.imread(output / "registered_atlas.tiff")
    tifffile.imwrite(path, turned[::-1, :, ::-1], metadata=None)
    given = {} if record else {"spacing_um_zyx": STACK_UM, "atlas_spacing_um_zyx": ATLAS_UM}
    if record:
        (output / "brainreg.json").write_text(json.dumps(record))
    regions, summary = run(labels, tmp_path, atlas=path, **given)
    assert regions == expected.tolist()
    assert "atlas and labels are taken to lie as the stack that brainreg registered" in summary["notes"]
    # labels in the orientation of the atlas
    downsampled = tmp_path / "asr.tif"
    values = np.stack([tifffile.imread(plane) for plane in sorted(labels.iterdir())])
    tifffile.imwrite(downsampled, values[::-1, :, ::-1], photometric="minisblack", metadata=None)
    letters = {"orientation": "asr"} if record else {"orientation": "asr", "atlas_orientation": "psl"}
    regions, _ = run(downsampled, tmp_path, atlas=path, **letters, **given)
    at = np.argwhere(values[::-1, :, ::-1])
    assert regions == turned[tuple(np.floor((at + 0.5) * STACK_UM / ATLAS_UM).astype(int).T)].tolist()
    if record is None:
        with pytest.raises(SelmaError, match="give --orientation and --atlas-orientation"):
            run(downsampled, tmp_path, atlas=path, orientation="asr", **given)


def test_a_volume_beside_the_results_is_laid_as_any_other(stack, tmp_path):
    """The record in its folder says nothing about it."""
    labels, output, expected = stack
    (output / "brainreg.json").write_text(json.dumps(RECORDS[0]))
    path = output / "mine.tif"
    tifffile.imwrite(path, tifffile.imread(output / "registered_atlas.tiff")[::-1, :, ::-1], metadata=None)
    given = {"spacing_um_zyx": STACK_UM, "atlas_spacing_um_zyx": ATLAS_UM}
    regions, summary = run(labels, tmp_path, atlas=path, **given)
    assert regions == expected.tolist()
    assert summary["notes"] == []
    for name in ("boundaries.tiff", "downsampled_standard_brain.tiff", "deformation_field_0.tiff"):
        assert brainreg_output(output / name).orientation == "psl"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_that_of_the_turned_stack(orientation, tmp_path, rng):
    """A stack of any orientation, turned to asr by hand, has each voxel where the atlas is looked up."""
    turn = turn_between(orientation, "asr")
    shape = (4, 5, 6)
    regions = rng.integers(1, 9, tuple(2 * shape[axis] for axis in turn.axes), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "registered_atlas.tiff", regions, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "labels.tif", np.ones(shape, np.uint8), photometric="minisblack", metadata=None)
    um = (6.0, 2.0, 4.0)
    atlas = open_atlas(
        tmp_path / "registered_atlas.tiff",
        sample=open_volume(tmp_path / "labels.tif"),
        sample_um_zyx=um,
        spacing_um_zyx=tuple(um[axis] / 2 for axis in turn.axes),
        orientation=orientation,
    )
    at = np.argwhere(np.ones(shape))
    index = turned_by_hand(np.arange(len(at)).reshape(shape), turn)
    after = np.empty(len(at), int)
    after[index.ravel()] = np.arange(len(at))  # where each voxel is after the turns
    expected = 2 * np.stack(np.unravel_index(after, index.shape), axis=1) + 0.5
    np.testing.assert_allclose(atlas.lies.indices(at.astype(float)), expected, atol=1e-9)
    assert atlas.notes == ()


def test_nothing_of_brainreg_is_laid_in_silence(stack, tmp_path):
    labels, output, _ = stack
    for atlas in (output, output / "registered_atlas.tiff"):
        with pytest.raises(SelmaError, match=r"in the orientation of its atlas \(asr\).*--orientation, as in psl"):
            run(labels, tmp_path, atlas=atlas, spacing_um_zyx=STACK_UM, atlas_spacing_um_zyx=ATLAS_UM)
    hemispheres = tmp_path / "my_Registered_Hemispheres.tif"
    hemispheres.write_bytes((output / "registered_atlas.tiff").read_bytes())
    with pytest.raises(SelmaError, match="--orientation, as in psl"):
        run(labels, tmp_path, atlas=hemispheres, spacing_um_zyx=STACK_UM, atlas_spacing_um_zyx=ATLAS_UM)
    slices = tmp_path / "registered_atlas"
    slices.mkdir()
    tifffile.imwrite(slices / "z0.tif", np.ones((9, 9), np.uint8))
    with pytest.raises(SelmaError, match="--orientation, as in psl"):
        run(labels, tmp_path, atlas=slices, spacing_um_zyx=STACK_UM, atlas_spacing_um_zyx=ATLAS_UM)
    with pytest.raises(SelmaError, match="for an atlas without --transform"):
        run(
            labels,
            tmp_path,
            atlas=output,
            transform=tmp_path / "t.tfm",
            orientation="psl",
            spacing_um_zyx=STACK_UM,
            atlas_spacing_um_zyx=ATLAS_UM,
        )
    (output / "registered_atlas.tiff").unlink()
    (output / "brainreg.json").write_text("{}")
    with pytest.raises(SelmaError, match=r"without registered_atlas.tiff"):
        brainreg_output(output)
    (output / "registered_atlas.tiff").write_bytes(hemispheres.read_bytes())
    (output / "brainreg.json").write_text("{")
    with pytest.raises(SelmaError, match=r"brainreg.json: cannot be read"):
        brainreg_output(output)


def test_columns_that_brainglobe_takes(stack, tmp_path):
    """`map_points_to` of brainglobe-space, as it is documented: scaled, and on reversed axes counted from the other end of the stack.

    Its points are counted from the first corner, where centres are half a voxel further; without it, points are half a voxel of the stack off.
    """
    labels, output, _ = stack
    (output / "brainreg.json").write_text(json.dumps(RECORDS[0]))
    run(labels, tmp_path, atlas=output)
    with (tmp_path / "cells.csv").open(newline="") as file:
        points = np.array([[float(row[f"centroid_{axis}"]) for axis in "zyx"] for row in csv.DictReader(file)])
    volume = open_volume(labels)
    atlas = open_atlas(output, sample=volume, sample_um_zyx=STACK_UM)

    def mapped(points):
        scale, flipped = np.divide(STACK_UM, ATLAS_UM), (True, False, True)
        return np.where(flipped, (np.array(volume.shape) - points) * scale, points * scale)

    np.testing.assert_allclose(mapped(points + 0.5) - 0.5, atlas.lies.indices(points), atol=1e-9)
    off = np.abs(mapped(points) - 0.5 - atlas.lies.indices(points)) / np.divide(STACK_UM, ATLAS_UM)
    np.testing.assert_allclose(off, 0.5, atol=1e-9)


@pytest.mark.slow
def test_the_real_brain(tmp_path):
    """Hemispheres of the brain's voxels against those of the flipped stack; the turned stack correlates with what brainreg made of it."""
    root = Path(os.environ.get("SELMA_TEST_DATA", "")) / "brainreg_whole_brain"
    if not os.environ.get("SELMA_TEST_DATA") or not root.is_dir():
        pytest.skip("SELMA_TEST_DATA has no brainreg_whole_brain")
    stack = open_volume(root / "brain_slices")
    raw, made = stack.read(), tifffile.imread(root / "brainreg_output" / "downsampled.tiff")
    path = root / "brainreg_output" / "registered_hemispheres.tiff"
    given = {"sample": stack, "sample_um_zyx": STACK_UM, "spacing_um_zyx": ATLAS_UM}
    with pytest.raises(SelmaError, match="--orientation"):
        open_atlas(path, **given)
    atlas = open_atlas(path, orientation="psl", **given)
    at = np.argwhere(raw > 100)[::97]
    hemispheres = tifffile.imread(path)
    voxels = np.minimum(atlas.voxels_at(at.astype(float)), np.array(hemispheres.shape) - 1)
    looked_up = hemispheres[tuple(voxels.T)]
    flipped = np.stack([raw.shape[0] - 1 - at[:, 0], at[:, 1], raw.shape[2] - 1 - at[:, 2]], axis=1)
    by_hand = np.floor((flipped + 0.5) * STACK_UM / ATLAS_UM).astype(int)
    np.testing.assert_array_equal(looked_up, hemispheres[tuple(np.minimum(by_hand, np.array(made.shape) - 1).T)])
    assert (looked_up > 0).mean() > 0.9  # the brain lies in the registered brain
    left, right = (
        at[looked_up == value, 2].mean() for value in (1, 2)
    )  # BrainGlobe: 1 is left; psl begins at the left
    assert left + 60 < right

    def correlation(orientation):
        """Correlation between the mean of the stack in each voxel of the atlas and brainreg's image."""
        lies, places = open_atlas(path, orientation=orientation, **given), []
        for axis, length in enumerate(raw.shape):
            line = np.zeros((length, 3))
            line[:, axis] = np.arange(length)
            places.append(np.minimum(lies.voxels_at(line)[:, axis], made.shape[axis] - 1))
        voxel = np.ravel_multi_index(np.ix_(*places), made.shape).ravel()
        mean = np.bincount(voxel, raw.ravel(), made.size) / np.maximum(np.bincount(voxel, minlength=made.size), 1)
        return np.corrcoef(mean, made.ravel())[0, 1]

    assert correlation("psl") > 0.95 > 0.7 > correlation("asr")
