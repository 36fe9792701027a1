"""CZI against the arrays that were written with pylibCZIrw."""

import multiprocessing
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import microscope_libraries
from nnunet_selma.volumes.choice import Choice, Inventory
from nnunet_selma.volumes.czi import CZI_LIBRARY, CziVolume, czi_inventory, is_czi
from tests.volumes.czi_files import COMPRESSED, write_czi, write_tiles

pytest.importorskip("pylibCZIrw")

TIMES, SHAPE = 2, (5, 6, 7)
SPACING = (3.0, 2.0, 1.5)
NAMES = ("c-Fos", "autofluorescence", "DAPI")


def stacks(number=3, shape=(TIMES, *SHAPE), dtype=np.uint16):
    rng = np.random.default_rng(5)
    if np.issubdtype(dtype, np.floating):
        return [rng.normal(size=shape).astype(dtype) for _ in range(number)]
    return [rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True) for _ in range(number)]


@pytest.fixture(scope="module", params=[None, COMPRESSED], ids=["plain", "compressed"])
def five_axes(request, tmp_path_factory):
    """A file of three channels and two time points, and its voxels (c, t, z, y, x)."""
    voxels = stacks()
    path = tmp_path_factory.mktemp("czi") / "brain.czi"
    return write_czi(path, voxels, spacing_um_zyx=SPACING, names=NAMES, compression=request.param), np.stack(voxels)


def test_ending(tmp_path):
    assert is_czi(tmp_path / "a.CZI")
    assert not is_czi(tmp_path / "a.czi.txt")


def test_inventory(five_axes):
    assert czi_inventory(five_axes[0]) == Inventory(channels=3, channel_names=NAMES, times=TIMES)


def bounds(length):
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(*sorted(ends)))


@given(channel=st.integers(0, 2), time=st.integers(0, TIMES - 1), box=st.tuples(*map(bounds, SHAPE)))
def test_boxes(five_axes, channel, time, box):
    path, voxels = five_axes
    volume = CziVolume(path, Choice(channel=channel, time=time))
    assert (volume.shape, volume.dtype, volume.spacing_um_zyx) == (SHAPE, np.uint16, SPACING)
    assert volume.plane_wise
    np.testing.assert_array_equal(volume.read(*box), voxels[channel, time][box], strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_types_of_voxels(tmp_path, dtype):
    (voxels,) = stacks(1, SHAPE, dtype)
    volume = CziVolume(write_czi(tmp_path / "a.czi", [voxels]))
    np.testing.assert_array_equal(volume.read(), voxels, strict=True)
    assert volume.spacing_um_zyx is None


@pytest.mark.parametrize("names", [None, ("Channel:0", "Channel:1", "Channel:2"), ("DAPI", "", "GFP")])
def test_made_up_names_are_none(tmp_path, names):
    path = write_czi(tmp_path / "a.czi", stacks(), names=names)
    assert czi_inventory(path).channel_names == ()


def test_scenes(tmp_path):
    """Scenes of other sizes, at other places of the stage; the numbers of slices begin with 3."""
    first, second = (
        np.arange(60, dtype=np.uint16).reshape(3, 4, 5),
        np.arange(200, 242, dtype=np.uint16).reshape(2, 3, 7),
    )
    tiles = [
        ({"Z": z, "C": 0, "T": 0, "S": scene}, (left, -20), plane)
        for scene, left, stack in ((0, -30, first), (1, 500, second))
        for z, plane in enumerate(stack, start=3)
    ]
    path = write_tiles(tmp_path / "a.czi", tiles, spacing_um_zyx=SPACING)
    assert czi_inventory(path).scenes == ("scene 0", "scene 1")
    for scene, stack in (("0", first), ("scene 1", second)):
        np.testing.assert_array_equal(CziVolume(path, Choice(scene=scene)).read(), stack, strict=True)
    with pytest.raises(SelmaError, match=r"holds 2 images: 0 \(scene 0\), 1 \(scene 1\)"):
        CziVolume(path)
    with pytest.raises(SelmaError, match="has no scene 2"):
        czi_inventory(path, "2")


def mosaic(overlap=2):
    """Tiles of a mosaic of two by three, overlapping in equal voxels, and the merged image."""
    whole = np.random.default_rng(3).integers(1, 60000, (4, 20, 33), dtype=np.uint16)
    tiles = []
    for z, plane in enumerate(whole):
        for top in (0, 10 - overlap):
            for left in (0, 11 - overlap, 22 - 2 * overlap):
                tiles.append(
                    (
                        {"Z": z, "C": 0, "T": 0, "S": 0},
                        (left, top),
                        plane[top : top + 10 + overlap, left : left + 11 + 2 * overlap],
                    )
                )
    return tiles, whole


@given(box=st.tuples(*map(bounds, (4, 20, 33))))
def test_mosaics_are_merged(tmp_path_factory, box):
    path = tmp_path_factory.getbasetemp() / "mosaic.czi"
    tiles, whole = mosaic()
    if not path.exists():
        write_tiles(path, tiles)
    volume = CziVolume(path)
    assert (volume.shape, volume.plane_wise, volume.chunk_zyx) == (whole.shape, False, (1, 12, 15))
    np.testing.assert_array_equal(volume.read(*box), whole[box], strict=True)


@pytest.mark.parametrize("lacking", [-1, 7])
def test_a_stopped_acquisition_is_an_error(tmp_path, lacking):
    tiles, _ = mosaic()
    del tiles[lacking]
    with pytest.raises(SelmaError, match=f"1 slice of 4 lack voxels .* \\({lacking % 24 // 6}, counted from 0\\)"):
        CziVolume(write_tiles(tmp_path / "a.czi", tiles))


def test_a_missing_slice_is_an_error(tmp_path):
    plane = np.ones((4, 5), np.uint16)
    tiles = [({"Z": z, "C": c, "T": 0, "S": 0}, (0, 0), plane) for c in (0, 1) for z in range(6) if (c, z) != (1, 3)]
    path = write_tiles(tmp_path / "a.czi", tiles)
    assert CziVolume(path, Choice(channel=0)).shape == (6, 4, 5)
    with pytest.raises(SelmaError, match=r"1 slice of 6 lack voxels .* \(3, counted"):
        CziVolume(path, Choice(channel=1))


@pytest.mark.parametrize(
    ("axis", "name"),
    [("V", "2 views"), ("I", "2 illuminations"), ("H", "2 phases"), ("R", "2 rotations"), ("B", "2 blocks")],
)
def test_further_axes_are_named(tmp_path, axis, name):
    tiles = [
        ({axis: n, "Z": z, "C": 0, "T": 0, "S": 0}, (0, 0), np.full((4, 5), n, np.uint16))
        for n in (0, 1)
        for z in range(3)
    ]
    with pytest.raises(SelmaError, match=f"has {name} \\(axis {axis} of CZI\\)"):
        CziVolume(write_tiles(tmp_path / "a.czi", tiles))
    volume = CziVolume(write_tiles(tmp_path / "one.czi", tiles[3:]))
    assert volume.read().tolist() == np.ones((3, 4, 5)).tolist()


def test_colour_is_refused(tmp_path):
    tiles = [({"Z": 0, "C": 0, "T": 0, "S": 0}, (0, 0), np.zeros((4, 5, 3), np.uint8))]
    with pytest.raises(SelmaError, match="is a colour image"):
        CziVolume(write_tiles(tmp_path / "a.czi", tiles))


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(time=0), "has 3 channels"),
        (Choice(channel=3, time=0), "there is no channel 3"),
        (Choice(channel=0), "has 2 time points"),
        (Choice(channel=0, time=0, level=1), "level 1 is not among them"),
        (Choice(channel=0, time=0, scene="left"), "has no scene left"),
    ],
)
def test_choices(five_axes, choice, sentence):
    with pytest.raises(SelmaError, match=sentence) as error:
        CziVolume(five_axes[0], choice)
    assert str(error.value).startswith(str(five_axes[0]))


@pytest.mark.parametrize("length", [0, 10, 544, 700, 5000, -2500])
def test_cut_files_are_named(tmp_path, length):
    whole = write_czi(tmp_path / "whole.czi", stacks(), names=NAMES).read_bytes()
    path = tmp_path / "cut.czi"
    path.write_bytes(whole[:length])
    for read in (CziVolume, czi_inventory):
        with pytest.raises(SelmaError, match=r"cut.czi: cannot be read, the file is damaged"):
            read(path)


def test_other_content_is_named(tmp_path):
    path = tmp_path / "a.czi"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(SelmaError, match=r"a.czi: cannot be read"):
        CziVolume(path)


def test_damaged_voxels_are_named(tmp_path):
    """The headers are whole, a compressed slice is not."""
    (voxels,) = stacks(1, (3, 64, 65))
    path = write_czi(tmp_path / "a.czi", [voxels // 300], compression=COMPRESSED)
    content = bytearray(path.read_bytes())
    magic = bytes.fromhex("28b52ffd")
    start = content.index(magic, content.index(magic) + 4)
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    volume = CziVolume(path)
    np.testing.assert_array_equal(volume.read(slice(1)), (voxels // 300)[:1])
    with pytest.raises(SelmaError, match=r"a.czi: cannot be read to its end"):
        volume.read(slice(1, 2))


def test_without_the_library(tmp_path, monkeypatch):
    path = write_czi(tmp_path / "a.czi", stacks(1))
    assert CZI_LIBRARY.missing() is None
    monkeypatch.setattr(microscope_libraries, "find_spec", lambda _: None)
    with pytest.raises(
        SelmaError,
        match=r"a.czi: Zeiss CZI needs pylibCZIrw; install it with: pip install 'nnunet-selma\[microscopes\]'",
    ):
        CziVolume(path)


def test_a_slice_takes_memory_for_a_slice(tmp_path):
    voxels = np.ones((60, 200, 210), np.uint16)
    volume = CziVolume(write_czi(tmp_path / "a.czi", [voxels]))
    tracemalloc.start()
    volume.read(slice(30, 31))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not volume.read_whole
    assert peak < voxels.nbytes / 5


def total(volume):
    return int(volume.read().sum())


def test_other_processes_read(five_axes):
    path, voxels = five_axes
    volume = CziVolume(path, Choice(channel=1, time=1))
    expected = voxels[1, 1].sum()
    assert total(volume) == expected
    assert total(pickle.loads(pickle.dumps(volume))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(total, (volume,)) == expected
