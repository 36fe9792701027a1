"""From files to tables: the command, its outputs, and what it says where something is wrong."""

import csv
import json

import cc3d
import numpy as np
import pytest

from nnunet_selma import cli, objects
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.centreline import branch_points, centreline_length, skeleton
from nnunet_selma.morphology.components import label
from nnunet_selma.morphology.topology import betti_numbers
from nnunet_selma.objects import ObjectSettings, instance_image, measure_objects, reading
from nnunet_selma.objects import summary as objects_summary
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import fill_pyramid
from tests.conftest import write_image
from tests.objects.volumes import SPACING, blobs, measured, write_ome_zarr, write_slices


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of small volumes."""
    monkeypatch.setattr(reading, "BLOCK_VOXELS", 16**3)
    monkeypatch.setattr(reading, "SLAB_BYTES", 17 * 40 * 50)


def run(*arguments):
    chosen = cli.command_parser().parse_args(["objects", *map(str, arguments)])
    return chosen.run(chosen)


def rows(path):
    """The table as numbers."""
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    with path.open(newline="") as file:
        return [{name: parsed(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def parsed(cell):
    if cell in ("True", "False", ""):
        return {"True": True, "False": False, "": None}[cell]
    try:
        return float(cell) if "." in cell or "e" in cell else int(cell)
    except ValueError:
        return cell


def renumbered(numbers):
    """The same objects, numbered in raster order of first voxels."""
    values, firsts, back = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(values > 0, firsts, -1)))
    return order[back].reshape(numbers.shape) + (values[0] > 0)


def test_a_folder_of_slices(tmp_path, rng, capsys):
    values = blobs(rng)
    folder = write_slices(tmp_path / "labels", values)
    assert run(folder, "-o", tmp_path / "cells.csv", "--spacing", "4,1.5,2") == 0
    found = measured(values, values.shape)[0]
    table = rows(tmp_path / "cells.csv")
    assert [row["id"] for row in table] == list(range(1, len(found) + 1))
    assert [row["label"] for row in table] == found.label.tolist()
    assert [row["volume_um3"] for row in table] == (found.voxels * 12.0).tolist()
    np.testing.assert_array_equal(
        [[row[f"centroid_{axis}_um"] for axis in "zyx"] for row in table], found.centroid * SPACING
    )
    assert {row["mean_intensity"] for row in table} == {None}
    summary = json.loads((tmp_path / "cells.json").read_text())
    whole = np.prod(values.shape) * 12e-9
    assert summary["objects"] == len(found)
    assert summary["objects_per_mm3"] == pytest.approx(len(found) / whole)
    assert summary["share_of_volume"] == pytest.approx((values > 0).mean())
    assert [one["objects"] for one in summary["classes"]] == [(found.label == c).sum() for c in (1, 2)]
    assert summary["volume_um3"] == (values > 0).sum() * 12.0
    assert summary["betti"] is summary["trees"] is None
    assert summary["notes"] == []
    printed = capsys.readouterr().out
    assert f"objects: {len(found)} (label 1 " in printed
    assert f"table: {tmp_path / 'cells.csv'}, summary: {tmp_path / 'cells.json'}" in printed
    assert "topology" not in printed
    assert "skeleton" not in printed
    assert not list(tmp_path.glob("*.partial"))


def test_an_ome_zarr_with_its_image_and_instances_in_it(tmp_path, rng, monkeypatch):
    values = blobs(rng)
    raw = rng.integers(0, 65535, values.shape, dtype=np.uint16)
    brain = write_ome_zarr(tmp_path / "brain.ome.zarr", raw, cells=values)
    assert run(brain, "-o", tmp_path / "cells.parquet", "--instances", tmp_path / "numbers.ome.zarr", "--trees") == 0
    found = measured(values, values.shape, raw)[0]
    table = rows(tmp_path / "cells.parquet")
    assert [row["mean_intensity"] for row in table] == found.mean_intensity.tolist()
    assert [row["max_intensity"] for row in table] == found.max_intensity.tolist()
    image = open_volume(tmp_path / "numbers.ome.zarr")
    assert image.spacing_um_zyx == SPACING
    assert image.dtype == np.uint32
    numbers = image.read()
    np.testing.assert_array_equal(numbers, renumbered(cc3d.connected_components(values)))
    sizes = np.bincount(numbers.ravel())[1:]
    assert sizes.tolist() == [row["voxels"] for row in table]
    assert not list(tmp_path.glob(".*"))

    thin = skeleton(label(values > 0)[0])
    trees = json.loads((tmp_path / "cells.json").read_text())["trees"]
    assert trees["skeleton_length_um"] == pytest.approx(centreline_length(thin, SPACING))
    assert trees["skeleton_voxels"] == thin.sum()
    assert trees["branch_points"] == branch_points(thin)
    assert trees["pieces"] == 0
    monkeypatch.setattr(objects_summary, "MOST_THINNED", 0)
    assert run(brain, "-o", tmp_path / "pieces.csv", "--trees") == 0
    summary = json.loads((tmp_path / "pieces.json").read_text())
    assert summary["trees"].pop("pieces") > 8
    assert summary["trees"] == {name: trees[name] for name in summary["trees"]}
    assert any("thinned in pieces" in note for note in summary["notes"])

    inside = brain / "labels" / "numbers"
    assert run(brain, "--label", "cells", "-o", tmp_path / "again.csv", "--instances", inside, "--raw", "none") == 0
    np.testing.assert_array_equal(open_volume(inside).read(), numbers)
    with pytest.raises(SelmaError, match="cells, numbers; give one of them"):
        run(brain, "-o", tmp_path / "again.csv")
    with pytest.raises(SelmaError, match=r"numbers exists already.*--overwrite"):
        run(brain, "--label", "cells", "-o", tmp_path / "again.csv", "--instances", inside)
    for place in (brain, brain / "labels" / "cells"):
        with pytest.raises(SelmaError, match="is what is measured"):
            run(brain, "--label", "cells", "-o", tmp_path / "again.csv", "--instances", place, "--overwrite")
    few = ["--instances", inside, "--overwrite", "--min-voxels", "100"]
    assert run(brain, "--label", "cells", "-o", tmp_path / "again.csv", *few) == 0
    kept = sizes >= 100
    np.testing.assert_array_equal(open_volume(inside).read(), np.concatenate([[0], np.cumsum(kept) * kept])[numbers])


def test_csv_and_parquet_say_the_same(tmp_path, rng):
    raw = write_image(tmp_path / "raw.nii.gz", rng.random((30, 40, 50)).astype(np.float32))
    labels = write_image(tmp_path / "labels.nii.gz", blobs(rng))
    for name in ("a.csv", "a.parquet"):
        measure_objects(ObjectSettings(labels=labels, raw=raw, output=tmp_path / name))
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "a.parquet")
    assert rows(tmp_path / "a.csv")[0]["volume_um3"] is None
    assert rows(tmp_path / "a.csv")[0]["mean_intensity"] > 0
    assert "voxel size is not known" in json.loads((tmp_path / "a.json").read_text())["notes"][0]


def test_topology_is_measured_and_printed_on_request(tmp_path, rng, capsys):
    values = blobs(rng)
    folder = write_slices(tmp_path / "labels", values)
    assert run(folder, "-o", tmp_path / "cells.csv", "--topology") == 0
    b0, b1, b2 = betti_numbers(values)
    assert json.loads((tmp_path / "cells.json").read_text())["betti"] == {"b0": b0, "b1": b1, "b2": b2}
    assert f"above 0: β0 {b0} components, β1 {b1} loops, β2 {b2} cavities" in capsys.readouterr().out


def test_further_passes_are_made_only_on_request(tmp_path, rng):
    settings = {"labels": write_image(tmp_path / "labels.nii.gz", blobs(rng)), "output": tmp_path / "a.csv"}
    passes = []

    def record(items, name):
        passes.append(name)
        return items

    measure_objects(ObjectSettings(**settings), record)
    assert passes == ["objects"]
    measure_objects(ObjectSettings(**settings, topology=True, trees=True), record)
    assert passes == ["objects", "objects", "topology", "skeletons"]


def test_sizes_are_filtered_and_numbers_have_no_gaps(tmp_path, rng):
    values = blobs(rng)
    labels = write_image(tmp_path / "labels.nii.gz", values)
    settings = {"labels": labels, "output": tmp_path / "a.csv", "min_voxels": 20, "max_voxels": 200}
    summary = measure_objects(ObjectSettings(**settings))
    sizes = measured(values, values.shape)[0].voxels
    kept = sizes[(sizes >= 20) & (sizes <= 200)]
    table = rows(tmp_path / "a.csv")
    assert [row["voxels"] for row in table] == kept.tolist()
    assert [row["id"] for row in table] == list(range(1, len(kept) + 1))
    assert summary["left_out_by_size"] == len(sizes) - len(kept) > 0
    assert not any("foreground" in note for note in summary["notes"])
    summary = measure_objects(ObjectSettings(**settings, topology=True))
    assert summary["betti"] == betti_numbers(values)._asdict()
    assert "β0, β1, β2: measured on the 26-connected foreground, objects of all sizes" in summary["notes"][-1]


def test_six_neighbours(tmp_path, rng):
    values = (rng.random((20, 20, 20)) < 0.2).astype(np.uint8)
    labels = write_image(tmp_path / "labels.nii.gz", values)
    run(labels, "-o", tmp_path / "a.csv", "--connectivity", "6")
    assert len(rows(tmp_path / "a.csv")) == cc3d.connected_components(values, connectivity=6).max()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_nothing_there(name, tmp_path):
    labels = write_image(tmp_path / "labels.nii.gz", np.zeros((5, 6, 7), np.uint8))
    numbers = tmp_path / "numbers.ome.zarr"
    run(labels, "-o", tmp_path / name, "--instances", numbers, "--trees")
    assert rows(tmp_path / name) == []
    assert not open_volume(numbers).read().any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "a.xlsx"], "a.xlsx: a table of objects is .csv or .parquet"),
        (["-o", "missing/a.csv"], "there is no such folder"),
        (["-o", "a.csv", "--min-voxels", "0"], "--min-voxels is at least 1"),
        (["-o", "a.csv", "--min-voxels", "9", "--max-voxels", "8"], "no less than --min-voxels"),
        (["-o", "a.csv", "--transform", "t.tfm"], "--transform is for an atlas"),
        (["-o", "a.csv", "--label", "cells"], "has no label image cells"),
        (["-o", "a.csv", "--atlas", "atlas.nii.gz"], r"how large its voxels are.*--spacing Z,Y,X"),
        (["-o", "a.csv", "--spacing", "2,1,1", "--atlas", "atlas.nii.gz"], "atlas.nii.gz: there is no such file"),
        (["-o", "a.csv", "--raw", "none", "--scene", "1"], "--scene is for the image, and none is measured"),
        (["-o", "a.csv", "--raw", "none", "--channel", "0"], "--channel is for the image"),
        (["-o", "a.csv", "--time", "0"], "--time is for the image"),
        (["-o", "a.csv", "--raw", "raw.nii.gz"], "raw.nii.gz: there is no such file"),
        (["-o", "a.csv", "--instances", "labels"], "labels: is what is measured, and would be lost"),
        (["-o", "a.csv", "--instances", "labels/s_0.tif"], "s_0.tif exists already"),
        (
            ["-o", "a.csv", "--instances", "labels/s_0.tif", "--overwrite"],
            "s_0.tif: is no label image, and is not replaced",
        ),
        (["-o", "a.csv", "--instances", "missing/numbers.ome.zarr"], "missing: there is no such folder"),
        (
            ["-o", "a.csv", "--spacing", "2,1,1", "--atlas", "x.nii", "--regions", "a.csv"],
            "cannot hold objects and regions",
        ),
        (["-o", "a.csv", "--instances", "nothing/labels/numbers"], "nothing: is no OME-Zarr"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_slices(tmp_path / "labels", np.ones((3, 4, 5), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SelmaError, match=sentence):
        run(folder, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_instead_of_labels(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_VOXELS", 2**24)
    monkeypatch.setattr(reading, "SLAB_BYTES", 2**28)
    image = write_image(tmp_path / "raw.nii.gz", rng.integers(0, 65535, (32, 32, 32), dtype=np.uint16))
    with pytest.raises(
        SelmaError, match=r"raw.nii.gz: holds \d+ values that change from voxel to voxel, as in an image; give labels"
    ):
        run(image, "-o", tmp_path / "a.csv")


def test_without_pyarrow_parquet_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SelmaError, match=r"pip install 'nnunet-selma\[brains\]', or use .csv"):
        run(tmp_path, "-o", tmp_path / "a.parquet")


def test_a_run_that_fails_leaves_no_instances(tmp_path, rng, monkeypatch):
    labels = write_image(tmp_path / "labels.nii.gz", blobs(rng))

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("nnunet_selma.volumes.ome_zarr_writing.fill_pyramid", fails)
    with pytest.raises(OSError, match="no space"):
        run(labels, "-o", tmp_path / "a.csv", "--instances", tmp_path / "numbers.ome.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "labels.nii.gz"]


def test_labels_of_a_coarser_level_find_their_image(tmp_path, rng):
    """`predict-volume --level 1` into its input makes such labels."""
    raw = rng.integers(0, 65535, (16, 40, 300), dtype=np.uint16)
    brain = write_ome_zarr(tmp_path / "brain.ome.zarr", raw)
    fill_pyramid(brain)
    coarse = open_volume(brain, level=1)
    values = blobs(rng, coarse.shape)
    write_ome_zarr(brain, cells=values)
    assert run(brain, "-o", tmp_path / "cells.csv") == 0
    found = measured(values, values.shape, coarse.read())[0]
    assert [row["max_intensity"] for row in rows(tmp_path / "cells.csv")] == found.max_intensity.tolist()


def test_instances_belong_to_an_image_of_the_same_voxels(tmp_path, rng):
    brain = write_ome_zarr(tmp_path / "brain.ome.zarr", rng.integers(0, 9, (32, 32, 32), dtype=np.uint16))
    folder = write_slices(tmp_path / "labels", blobs(rng, (20, 30, 30)))
    with pytest.raises(SelmaError, match=r"has 32 × 32 × 32 voxels \(z, y, x\) and the labels 20 × 30 × 30"):
        run(folder, "-o", tmp_path / "cells.csv", "--instances", brain / "labels" / "cells")


def test_what_a_killed_process_left_is_no_obstacle(tmp_path, rng):
    folder = write_slices(tmp_path / "labels", blobs(rng))
    for _ in range(2):
        (tmp_path / ".numbers.ome.zarr.before" / "part").mkdir(parents=True)
        options = ["--instances", tmp_path / "numbers.ome.zarr", "--overwrite"]
        assert run(folder, "-o", tmp_path / "cells.csv", *options) == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "edge", [(67, 67, 67), (97, 101, 103), (13, 128, 257), (256, 256, 256), (1, 4096, 4096), (4, 7, 101)]
)
@pytest.mark.parametrize("blocks", [1, 3])
def test_instances_are_stored_in_chunks_that_fill_shards(edge, blocks):
    shape = tuple(blocks * length for length in edge)
    shard, chunk = instance_image._shard_and_chunk(edge, shape)
    assert all(0 <= s - e < 8 and s % c == 0 and c <= 64 for s, e, c in zip(shard, edge, chunk, strict=True))
    if blocks == 1:
        assert all(c >= min(e, 32) for c, e in zip(chunk, edge, strict=True))
    else:
        assert shard == edge  # blocks are written by themselves


def test_a_summary_is_of_its_table(tmp_path, rng, monkeypatch):
    folder = write_slices(tmp_path / "labels", blobs(rng))
    assert run(folder, "-o", tmp_path / "cells.csv") == 0
    monkeypatch.setattr(objects, "topology", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder, "-o", tmp_path / "cells.csv", "--topology")
    assert not (tmp_path / "cells.json").exists()
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(SelmaError, match=r"dataset.json: would be replaced"):
        run(folder, "-o", tmp_path / "dataset.csv")
    assert (tmp_path / "dataset.json").read_text() == '{"labels": {}}'


@pytest.mark.parametrize("size", ["nan,1,1", "inf,1,1", "0,1,1"])
def test_a_voxel_size_is_a_number(tmp_path, rng, size, capsys):
    folder = write_slices(tmp_path / "labels", blobs(rng))
    with pytest.raises(SystemExit):
        run(folder, "-o", tmp_path / "cells.csv", "--spacing", size)
    assert "a voxel size is above 0" in capsys.readouterr().err
