"""Images written block by block: read back by our reader and by others, and their pyramids against a loop over windows."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import open_volume, pyramids
from nnunet_selma.volumes.ome_zarr_writing import (
    ImageLayout,
    create_group_without_image,
    create_image,
    create_labels,
    fill_pyramid,
    image_version,
    remove_partial_writes,
    write_box,
)
from nnunet_selma.volumes.pyramids import Level, level_array, pyramid_levels, reduced

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
ome_zarr_models = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models needs Python 3.11")

VERSIONS = ("0.5", "0.4")
COLOURS = {1: ("vessel", (255, 0, 0, 255)), 2: ("nucleus", (0, 255, 0, 128))}
DTYPES = {"mean": np.uint16, "mode": np.uint8, "nearest": np.uint32, "any": np.uint32}


@pytest.fixture
def small_pyramids(monkeypatch):
    """Several levels of volumes that are small enough for a loop over voxels."""
    monkeypatch.setattr(pyramids, "_SMALL", 4)


def layout(shape, dtype=np.uint8, **options):
    options = {
        "spacing_um_zyx": (4.0, 1.5, 1.0),
        "shard_zyx": (4, 4, 8),
        "chunk_zyx": (2, 4, 4),
        "reduction": "mode",
        "name": "vessels",
        **options,
    }
    return ImageLayout(shape=shape, dtype=np.dtype(dtype), **options)


def corners(shape, unit):
    return itertools.product(*(range(0, n, u) for n, u in zip(shape, unit, strict=True)))


def write(path, voxels, image, *, fill=True):
    """Write an array shard by shard, and its pyramid."""
    create_image(path, image)
    for corner in corners(image.shape, image.shard_zyx):
        box = tuple(slice(a, a + u) for a, u in zip(corner, image.shard_zyx, strict=True))
        write_box(path, corner, voxels[(..., *box)])
    if fill:
        fill_pyramid(path)
    return path


def files(path):
    """What every file holds, by its path below a folder."""
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def by_windows(voxels, steps, reduction):
    """The definition of a reduction, voxel by voxel."""
    made = np.empty([-(-n // s) for n, s in zip(voxels.shape, steps, strict=True)], voxels.dtype)
    for index in np.ndindex(made.shape):
        window = voxels[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, steps, strict=True))]
        if reduction == "nearest":
            made[index] = window.flat[0]
        elif reduction == "mean" and voxels.dtype.kind == "f":
            made[index] = window.astype(np.float64).mean()
        elif reduction == "mean":
            total = sum(int(v) for v in window.flat)
            made[index] = (2 * total + window.size) // (2 * window.size)
        else:
            chosen = window[window != 0] if reduction == "any" and window.any() else window
            values, counts = np.unique(chosen, return_counts=True)
            made[index] = values[counts == counts.max()].max()
    return made


class TestLevels:
    def test_equal_edges_are_halved_together_until_256(self):
        assert pyramid_levels((700, 1000, 300), (1.0, 1.0, 1.0)) == [
            Level(shape=(700, 1000, 300), factors_zyx=(1, 1, 1)),
            Level(shape=(350, 500, 150), factors_zyx=(2, 2, 2)),
            Level(shape=(175, 250, 75), factors_zyx=(4, 4, 4)),
        ]

    def test_a_coarse_axis_waits_for_the_others(self):
        levels = pyramid_levels((500, 4001, 4000), (4.0, 1.0, 1.0))
        assert [level.factors_zyx for level in levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]
        assert [level.shape[:2] for level in levels] == [(500, 4001), (500, 2001), (500, 1001), (250, 501), (125, 251)]

    def test_an_axis_of_one_voxel_stays_and_holds_up_no_other(self):
        assert [level.factors_zyx for level in pyramid_levels((1, 600, 600), (0.1, 1.0, 1.0))] == [
            (1, 1, 1),
            (1, 2, 2),
            (1, 4, 4),
        ]

    @pytest.mark.parametrize("shape", [(1, 1, 1), (256, 256, 256)])
    def test_a_small_volume_has_one_level(self, shape):
        assert len(pyramid_levels(shape, (1.0, 1.0, 1.0))) == 1

    def test_a_whole_brain(self):
        levels = pyramid_levels((6656, 5616, 733), (1.0, 1.0, 1.0))
        assert levels[-1] == Level(shape=(208, 176, 23), factors_zyx=(32, 32, 32))


class TestReduced:
    @pytest.mark.parametrize("reduction", ["mean", "mode", "nearest", "any"])
    @settings(max_examples=60)
    @given(data=st.data())
    def test_is_its_definition(self, reduction, data):
        shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
        dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.uint32]))
        few = st.integers(0, 3) | st.integers(np.iinfo(dtype).max - 2, np.iinfo(dtype).max)
        voxels = data.draw(arrays(dtype, shape, elements=few))
        steps = data.draw(st.tuples(*[st.sampled_from([1, 2])] * 3))
        made = reduced(voxels, steps, reduction)
        assert made.dtype == dtype
        np.testing.assert_array_equal(made, by_windows(voxels, steps, reduction))

    def test_mean_of_probabilities(self, rng):
        voxels = rng.random((5, 4, 3), dtype=np.float32)
        made = reduced(voxels, (2, 2, 2), "mean")
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, by_windows(voxels, (2, 2, 2), "mean"), rtol=1e-6)

    def test_by_hand(self):
        window = np.array([[[0, 7], [7, 0]], [[9, 1], [2, 3]]], np.uint8)
        assert reduced(window, (2, 2, 2), "mode").item() == 7  # 0 and 7 stand twice; foreground wins
        assert reduced(np.array([[[0, 0], [0, 5]]]), (1, 2, 2), "any").item() == 5
        assert reduced(np.array([[[5, 4], [4, 0]]]), (1, 2, 2), "any").item() == 4
        assert reduced(window, (2, 2, 2), "mean").item() == 4  # 29 / 8
        assert reduced(window, (2, 2, 2), "nearest").item() == 0
        assert reduced(np.array([[[0, 1]]], np.uint8), (1, 1, 2), "mean").item() == 1  # halves up


class TestImages:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("shard_zyx", [(4, 4, 8), (6, 20, 4), (2, 4, 4)])
    @pytest.mark.parametrize("reduction", ["mean", "mode", "nearest"])
    def test_every_level_is_read_as_defined(self, reduction, shard_zyx, version, rng, tmp_path, small_pyramids):
        voxels = rng.integers(0, 4, (5, 11, 9)).astype(DTYPES[reduction])
        voxels[:, :4] = 0
        image = layout(voxels.shape, voxels.dtype, reduction=reduction, shard_zyx=shard_zyx, version=version)
        path = write(tmp_path / "v.ome.zarr", voxels, image)
        expected, factors = voxels, (1, 1, 1)
        assert [level.factors_zyx for level in image.levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
        for i, level in enumerate(image.levels):
            steps = [f // g for f, g in zip(level.factors_zyx, factors, strict=True)]
            expected, factors = by_windows(expected, steps, reduction), level.factors_zyx
            volume = open_volume(path, level=i)
            assert volume.shape == level.shape
            assert volume.dtype == voxels.dtype
            assert volume.spacing_um_zyx == tuple(s * f for s, f in zip((4.0, 1.5, 1.0), factors, strict=True))
            np.testing.assert_array_equal(volume.read(), expected)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.uint32, np.uint64])
    @pytest.mark.parametrize("version", VERSIONS)
    def test_values_survive(self, version, dtype, tmp_path):
        top = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
        voxels = np.full((3, 4, 5), top, dtype)
        image = layout(voxels.shape, dtype, reduction="nearest", spacing_um_zyx=None, version=version)
        volume = open_volume(write(tmp_path / "v.ome.zarr", voxels, image))
        assert volume.spacing_um_zyx is None
        assert volume.dtype == dtype
        np.testing.assert_array_equal(volume.read(), voxels)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_channels(self, version, rng, tmp_path, small_pyramids):
        voxels = rng.random((2, 5, 9, 9), dtype=np.float32)
        image = layout(voxels.shape[1:], np.float32, reduction="mean", channels=("a", "b"), version=version)
        path = write(tmp_path / "v.ome.zarr", voxels, image)
        coarse = len(image.levels) - 1
        for channel in range(2):
            np.testing.assert_array_equal(open_volume(path, channel=channel).read(), voxels[channel])
            alone = write(
                tmp_path / f"{channel}.ome.zarr",
                voxels[channel],
                layout(voxels.shape[1:], np.float32, reduction="mean"),
            )
            np.testing.assert_array_equal(
                open_volume(path, channel=channel, level=coarse).read(), open_volume(alone, level=coarse).read()
            )

    @pytest.mark.parametrize(
        ("dtype", "given", "shown"),
        [
            (np.uint16, None, {"min": 0.0, "start": 0.0, "end": 65535.0, "max": 65535.0}),
            (np.uint16, (90.0, 700.0), {"min": 0.0, "start": 90.0, "end": 700.0, "max": 65535.0}),
            (np.float32, None, {"min": 0.0, "start": 0.0, "end": 1.0, "max": 1.0}),
            (np.float32, (-2.0, 9.0), {"min": -2.0, "start": -2.0, "end": 9.0, "max": 9.0}),
        ],
    )
    def test_what_a_viewer_shows_first(self, dtype, given, shown, tmp_path):
        create_image(tmp_path / "v", layout((4, 4, 8), dtype, reduction="mean", window=given))
        (channel,) = zarr.open(str(tmp_path / "v")).attrs["ome"]["omero"]["channels"]
        assert channel == {"label": "vessels", "color": "FFFFFF", "active": True, "window": shown}

    def test_a_level_begins_where_its_first_voxel_has_its_centre(self, tmp_path, small_pyramids):
        create_image(tmp_path / "v", layout((8, 17, 13)))
        (multiscale,) = zarr.open(str(tmp_path / "v")).attrs["ome"]["multiscales"]
        last = multiscale["datasets"][-1]["coordinateTransformations"]
        assert last == [
            {"type": "scale", "scale": [8.0, 12.0, 8.0]},
            {"type": "translation", "translation": [2.0, 5.25, 3.5]},
        ]
        assert multiscale["name"] == "vessels"

    @pytest.mark.parametrize("reduction", ["mean", "mode", "any"])
    def test_threads_make_the_same_pyramid(self, reduction, rng, tmp_path, monkeypatch):
        monkeypatch.setattr(pyramids, "_SMALL", 8)  # level 1, of two shards, is the last
        voxels = rng.integers(0, 3, (8, 8, 16), dtype=np.uint8)
        image = layout(voxels.shape, reduction=reduction)
        alone = write(tmp_path / "alone", voxels, image)
        shared = write(tmp_path / "shared", voxels, image, fill=False)
        monkeypatch.setattr(pyramids, "compute_threads", lambda: 4)
        seen = []

        def counted(items, label):
            for item in items:
                seen.append(label)
                yield item

        fill_pyramid(shared, counted)
        assert files(shared) == files(alone)
        assert seen == ["level 1"] * 2

    def test_levels_on_record_are_not_made_again(self, rng, tmp_path, small_pyramids):
        voxels = rng.integers(1, 3, (8, 8, 16), dtype=np.uint8)
        whole = write(tmp_path / "whole", voxels, layout(voxels.shape))
        path, record = write(tmp_path / "v", voxels, layout(voxels.shape), fill=False), tmp_path / "levels.json"
        stop, seen = threading.Event(), []

        def stopped(items, label):
            for item in items:
                if label == "level 2":
                    stop.set()
                seen.append(label)
                yield item

        fill_pyramid(path, stopped, record=record, stop=stop)
        assert seen[-1] == "level 2"
        assert files(path) != files(whole)
        seen.clear()
        stop.clear()
        fill_pyramid(path, lambda items, label: seen.append(label) or items, record=record)
        assert seen == ["level 2", "level 3"]
        assert files(path) == files(whole)
        seen.clear()
        fill_pyramid(path, lambda items, label: seen.append(label) or items, record=record)
        assert not seen

    @pytest.mark.parametrize("reduction", ["any", "mode", "nearest"])
    def test_a_median_cell_is_there_at_the_level_that_is_shown_first(self, reduction, tmp_path):
        """A cell 5 voxels across in a volume 4096 wide; napari shows the coarsest level first."""
        place = np.indices((5, 5, 5)) - 2
        cell = np.asarray((place**2).sum(axis=0) < 7, np.uint8)
        image = layout(
            (64, 64, 4096), shard_zyx=(64, 64, 512), chunk_zyx=(32,) * 3, reduction=reduction, spacing_um_zyx=(1.0,) * 3
        )
        create_image(tmp_path / "v", image)
        voxels = np.zeros((64, 64, 512), np.uint8)
        voxels[18:23, 37:42, 101:106] = cell
        write_box(tmp_path / "v", (0, 0, 512), voxels)
        fill_pyramid(tmp_path / "v")
        levels = zarr.open(str(tmp_path / "v"))
        coarsest = levels[str(len(image.levels) - 1)]
        assert max(coarsest.shape) == 256
        assert bool(np.any(coarsest[:])) == (reduction == "any")

    def test_a_second_run_replaces_what_the_first_made(self, tmp_path, small_pyramids):
        image = layout((4, 8, 16))
        path = write(tmp_path / "v", np.ones(image.shape, np.uint8), image)
        write(path, np.zeros(image.shape, np.uint8), image)
        assert all(name.endswith("zarr.json") for name in files(path))


class TestFiles:
    def test_a_shard_is_one_file_and_nothing_is_written_for_zeros(self, tmp_path):
        image = layout((8, 8, 16))
        create_image(tmp_path / "v", image)
        write_box(tmp_path / "v", (0, 0, 0), np.ones((8, 4, 8), np.uint8))
        write_box(tmp_path / "v", (0, 4, 8), np.zeros((8, 4, 8), np.uint8))
        assert files(tmp_path / "v" / "0").keys() == {"zarr.json", "c/0/0/0", "c/1/0/0"}
        assert level_array(tmp_path / "v", 0).chunks == (2, 4, 4)
        assert open_volume(tmp_path / "v").read(slice(0, 8), slice(4, 8)).max() == 0

    def test_0_4_has_a_file_for_each_chunk(self, tmp_path):
        create_image(tmp_path / "v", layout((8, 8, 16), version="0.4"))
        write_box(tmp_path / "v", (0, 0, 0), np.ones((4, 4, 8), np.uint8))
        assert files(tmp_path / "v" / "0").keys() - {".zarray", ".zattrs"} == {"0/0/0", "0/0/1", "1/0/0", "1/0/1"}

    def test_only_whole_shards_are_written(self, tmp_path):
        create_image(tmp_path / "v", layout((7, 8, 16)))
        write_box(tmp_path / "v", (4, 0, 0), np.ones((3, 4, 8), np.uint8))  # up to the end
        for start, shape in (
            ((2, 0, 0), (4, 4, 8)),
            ((0, 0, 0), (3, 4, 8)),
            ((4, 0, 0), (4, 4, 8)),
            ((0, 0, 16), (4, 4, 8)),
        ):
            with pytest.raises(ValueError, match="not whole shards"):
                write_box(tmp_path / "v", start, np.ones(shape, np.uint8))
        for voxels in (np.ones((4, 4, 8), np.uint16), np.ones((1, 4, 4, 8), np.uint8)):
            with pytest.raises(ValueError, match="no part of an image"):
                write_box(tmp_path / "v", (0, 0, 0), voxels)

    @pytest.mark.parametrize(("version", "chunk_zyx"), [("0.5", (2, 4, 4)), ("0.4", (4, 4, 8))])
    def test_a_write_that_fails_leaves_what_was_there(self, version, chunk_zyx, tmp_path, monkeypatch):
        image = layout((4, 4, 8), version=version, chunk_zyx=chunk_zyx)  # one file
        create_image(tmp_path / "v", image)
        write_box(tmp_path / "v", (0, 0, 0), np.ones(image.shape, np.uint8))
        before = files(tmp_path)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_box(tmp_path / "v", (0, 0, 0), np.full(image.shape, 2, np.uint8))
        assert files(tmp_path) == before

    def test_a_killed_writer_leaves_whole_shards_or_none(self, tmp_path):
        path, shape = tmp_path / "v", (64, 64, 64)
        create_image(path, layout((64, 64, 64 * 400), np.uint16, shard_zyx=shape, chunk_zyx=(32, 32, 32)))
        program = (
            "import sys, numpy as np\nfrom pathlib import Path\nfrom nnunet_selma.volumes.ome_zarr_writing import write_box\n"
            "voxels = np.random.default_rng(0).integers(1, 60000, (64, 64, 64), dtype=np.uint16)\n"
            "for i in range(400): write_box(Path(sys.argv[1]), (0, 0, 64 * i), voxels)"
        )
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not (path / "0/c/0/0/3").exists():
            assert writer.poll() is None
            time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        writer.wait()
        remove_partial_writes(path)
        assert not list(path.rglob("*.partial"))
        expected = np.random.default_rng(0).integers(1, 60000, shape, dtype=np.uint16)
        written = [int(file.name) for file in (path / "0/c/0/0").iterdir()]
        assert 4 <= len(written) < 400
        for i in (0, max(written)):
            np.testing.assert_array_equal(open_volume(path).read(x=slice(64 * i, 64 * i + 64)), expected)

    def test_creating_the_same_image_again_keeps_its_voxels_and_another_is_refused(self, tmp_path):
        image = layout((4, 4, 8))
        path = write(tmp_path / "v", np.ones(image.shape, np.uint8), image)
        (path / "0" / "zarr.json").unlink()  # killed while it was created
        create_image(path, image)
        assert open_volume(path).read().all()
        with pytest.raises(SelmaError, match="another kind"):
            create_image(path, layout((4, 4, 16)))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"chunk_zyx": (3, 4, 4)}, "not whole chunks"),
            ({"dtype": np.float32, "label_colours": COLOURS}, "choose integers"),
            ({"dtype": np.bool_}, "choose integers"),
            ({"dtype": np.uint64, "reduction": "mean"}, "overflow"),
        ],
    )
    def test_layouts_that_cannot_be(self, options, match):
        with pytest.raises(SelmaError, match=match):
            layout((4, 4, 8), **options)

    @pytest.mark.parametrize("missing", ["zarr", "ome_zarr_models.v05"])
    def test_a_missing_library_is_named(self, missing, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(SelmaError, match=r"pip install 'nnunet-selma\[brains\]'"):
            create_image(tmp_path / "v", layout((4, 4, 8)))

    def test_only_own_pyramids_are_filled(self, tmp_path):
        create_group_without_image(tmp_path / "v", "0.5")
        with pytest.raises(SelmaError, match="how its levels are made"):
            fill_pyramid(tmp_path / "v")


def write_with_labels(path, version, rng, *, channels=()):
    """A grey image with two label images."""
    shape = (5, 9, 9)
    grey = rng.integers(0, 65535, (*[len(channels)] * bool(channels), *shape), dtype=np.uint16)
    write(path, grey, layout(shape, np.uint16, reduction="mean", name="grey", channels=channels, version=version))
    for name, options in (
        ("vessels", {"label_colours": COLOURS}),
        ("cells", {"label_colours": {}, "dtype": np.uint32}),
    ):
        image = layout(shape, reduction="mode", name=name, version=version, **{"dtype": np.uint8, **options})
        write(path / "labels" / name, rng.integers(0, 3, shape).astype(image.dtype), image)
    create_labels(path, ["vessels"], version)
    create_labels(path, ["cells", "vessels"], version)
    return path


@pytest.mark.parametrize("version", VERSIONS)
class TestLabels:
    def test_are_listed_once_and_in_order(self, version, rng, tmp_path):
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng)
        attributes = zarr.open(str(path / "labels")).attrs.asdict()
        assert attributes == (
            {"labels": ["vessels", "cells"]}
            if version == "0.4"
            else {"ome": {"version": "0.5", "labels": ["vessels", "cells"]}}
        )
        assert image_version(path) == version
        assert open_volume(path / "labels" / "vessels").shape == (5, 9, 9)

    def test_say_names_and_colours(self, version, rng, tmp_path):
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng)
        attributes = zarr.open(str(path / "labels" / "vessels")).attrs.asdict()
        assert attributes.get("ome", attributes)["image-label"] == {
            "version": version,
            "colors": [
                {"label-value": 1, "rgba": [255, 0, 0, 255]},
                {"label-value": 2, "rgba": [0, 255, 0, 128]},
            ],
            "properties": [{"label-value": 1, "name": "vessel"}, {"label-value": 2, "name": "nucleus"}],
            "source": {"image": "../../"},
        }

    def test_a_group_without_image_holds_them_too(self, version, tmp_path):
        image = layout((4, 4, 8), label_colours=COLOURS, version=version)
        write(tmp_path / "v" / "labels" / "vessels", np.ones(image.shape, np.uint8), image)
        create_labels(tmp_path / "v", ["vessels"], version)
        assert image_version(tmp_path / "v") == version
        assert list(zarr.open_group(str(tmp_path / "v" / "labels")).group_keys()) == ["vessels"]

    def test_alone_they_name_no_source(self, version, tmp_path):
        create_image(tmp_path / "v", layout((4, 4, 8), label_colours=COLOURS, version=version))
        attributes = zarr.open(str(tmp_path / "v")).attrs.asdict()
        assert "source" not in attributes.get("ome", attributes)["image-label"]

    def test_join_those_of_another_program(self, version, rng, tmp_path):
        """Also where it consolidated its metadata, and wrote attributes of its own."""
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng)
        labels = zarr.open_group(str(path / "labels"))
        labels.attrs["theirs"] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr 3 has not settled them
            zarr.consolidate_metadata(str(path))
        image = layout((5, 9, 9), label_colours=COLOURS, version=version)
        write(path / "labels" / "nuclei", np.ones(image.shape, np.uint8), image)
        create_labels(path, ["nuclei"], version)
        consolidated = zarr.open_group(str(path), use_consolidated=True)
        attributes = consolidated["labels"].attrs.asdict()
        assert attributes["theirs"] == 1
        assert attributes.get("ome", attributes)["labels"] == ["vessels", "cells", "nuclei"]
        assert consolidated["labels/nuclei/0"][:].all()

    def test_of_the_other_version_are_refused(self, version, rng, tmp_path):
        create_image(tmp_path / "v", layout((4, 4, 8), version=version))
        with pytest.raises(SelmaError, match=f"is OME-Zarr {version}"):
            create_labels(tmp_path / "v", ["a"], VERSIONS[1 - VERSIONS.index(version)])


@pytest.mark.parametrize("channels", [(), ("a", "b")])
@pytest.mark.parametrize("version", VERSIONS)
class TestOtherReaders:
    def test_the_models_of_the_specification(self, version, channels, rng, tmp_path):
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng, channels=channels)
        models = getattr(ome_zarr_models, f"v{version.replace('.', '')}")
        image = models.Image.from_zarr(zarr.open_group(str(path), mode="r"))
        assert image.ome_attributes.multiscales[0].ndim == 3 + bool(channels)
        labels = models.Labels.from_zarr(zarr.open_group(str(path / "labels"), mode="r"))
        assert labels.ome_attributes.labels == ["vessels", "cells"]
        label = models.ImageLabel.from_zarr(zarr.open_group(str(path / "labels" / "vessels"), mode="r"))
        assert [c.label_value for c in label.ome_attributes.image_label.colors] == [1, 2]
        assert type(ome_zarr_models.open_ome_zarr(str(path), version=version)) is models.Image

    def test_ngff_zarr(self, version, channels, rng, tmp_path):
        ngff_zarr = pytest.importorskip("ngff_zarr")
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng, channels=channels)
        pytest.importorskip("jsonschema")
        for place in (path, path / "labels" / "vessels", path / "labels" / "cells"):
            attributes = zarr.open_group(str(place)).attrs.asdict()
            ngff_zarr.validate(attributes, version, "image", strict=True)  # also what should be, not only what must
            if place != path:
                ngff_zarr.validate(attributes, version, "label")
            multiscales = ngff_zarr.from_ngff_zarr(str(place), validate=True, version=version)
            finest = multiscales.images[0]
            assert finest.scale["y"] == 1.5
            assert finest.axes_units["z"] == "micrometer"
            np.testing.assert_array_equal(np.asarray(finest.data), level_array(place, 0)[:])

    def test_napari(self, version, channels, rng, tmp_path):
        reader = pytest.importorskip("napari_ome_zarr")
        path = write_with_labels(tmp_path / "v.ome.zarr", version, rng, channels=channels)
        layers = reader.napari_get_reader(str(path))(str(path))
        assert [kind for _, _, kind in layers] == ["image", "labels", "labels"]
        for (levels, options, _), place in zip(
            layers, [path, path / "labels/vessels", path / "labels/cells"], strict=True
        ):
            np.testing.assert_array_equal(np.asarray(levels[0]), level_array(place, 0)[:])
            assert options["scale"] == [4.0, 1.5, 1.0]
        assert layers[0][1]["name"] == (["grey: a", "grey: b"] if channels else "grey: grey")
