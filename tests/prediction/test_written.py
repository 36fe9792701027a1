"""Additions to a result and changes in it are named before anything is deleted."""

import os

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.written import check_replaceable, manifest, manifests_as_json, manifests_from_json
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, create_labels, write_box


def image(path, *, labels=False):
    layout = ImageLayout(
        shape=(8, 8, 8),
        dtype=np.dtype(np.uint8),
        spacing_um_zyx=(1.0, 1.0, 1.0),
        shard_zyx=(8, 8, 8),
        chunk_zyx=(8, 8, 8),
        reduction="mode" if labels else "mean",
        name="a",
        label_colours={} if labels else None,
    )
    create_image(path, layout)
    write_box(path, (0, 0, 0), np.ones((8, 8, 8), np.uint8))
    return path


@pytest.fixture
def output(tmp_path):
    path = image(tmp_path / "out.ome.zarr")
    image(path / "labels" / "segmentation", labels=True)
    create_labels(path, ["segmentation"], "0.5")
    return path


@pytest.fixture
def slices(tmp_path):
    folder = tmp_path / "out_segmentation"
    folder.mkdir()
    for z in range(3):
        (folder / f"segmentation_{z:04d}.tif").write_bytes(bytes(9))
    return folder


def test_what_nobody_touched_is_replaceable(output, slices):
    for folder in (output, slices):
        written = manifest(folder)
        stored = manifests_from_json(manifests_as_json({"output": written}))["output"]
        assert stored == written
        assert check_replaceable(folder, [stored]) == stored
        for file in folder.rglob("*"):
            os.utime(file)  # copied, or touched
        (folder / ".DS_Store").write_bytes(b"of a system")
        assert check_replaceable(folder, [{}, stored]) == stored


def add_label(output):
    image(output / "labels" / "mine", labels=True)
    create_labels(output, ["mine"], "0.5")


def edit(path):
    write_box(path, (0, 0, 0), np.full((8, 8, 8), 2, np.uint8))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_label, r"labels/mine \(added since"),
        (lambda output: (output / "notes.txt").write_text("mine"), r"notes.txt \(added"),
        (lambda output: (output / "labels" / "notes.txt").write_text("mine"), r"labels/notes.txt \(added"),
        (lambda output: edit(output / "labels" / "segmentation"), r"labels/segmentation \(changed since"),
        (lambda output: edit(output), r", and 0 \(changed since"),
        (lambda output: (output / "zarr.json").write_text("{}"), r"zarr.json \(changed since"),
    ],
)
def test_what_would_be_lost_is_named(output, change, named):
    written = manifest(output)
    change(output)
    with pytest.raises(SelmaError, match=named):
        check_replaceable(output, [written])


def test_slices_of_others_and_changed_ones_are_named(slices):
    written = manifest(slices)
    (slices / "notes.txt").write_text("mine")
    with pytest.raises(SelmaError, match=r"notes.txt \(added"):
        check_replaceable(slices, [written])
    (slices / "notes.txt").unlink()
    (slices / "segmentation_0001.tif").write_bytes(b"corrected")
    with pytest.raises(SelmaError, match=r"slices \(changed"):
        check_replaceable(slices, [written])


def test_what_has_no_record_is_not_replaceable(output, tmp_path):
    with pytest.raises(SelmaError, match="was not written by this command"):
        check_replaceable(output, [])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SelmaError, match="was not written by this command"):
        check_replaceable(tmp_path / "file", [])


def test_a_file_is_known_by_its_bytes(tmp_path):
    file = tmp_path / "labels.nii.gz"
    file.write_bytes(b"labels")
    written = manifest(file)
    assert check_replaceable(file, [written]) == written
    file.write_bytes(b"edited")
    with pytest.raises(SelmaError, match=r"the file itself \(changed"):
        check_replaceable(file, [written])
