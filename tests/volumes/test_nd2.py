"""ND2 against the arrays that were written."""

import gc
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
from nnunet_selma.volumes.nd2 import ND2_LIBRARY, Nd2Volume, is_nd2, nd2_inventory
from tests.volumes.nd2_files import write_nd2

pytest.importorskip("nd2")

SHAPE = (2, 3, 4, 3, 5, 6)  # t, p, z, c, y, x
SPACING = (3.0, 1.5, 1.5)
NAMES = ("DAPI", "c-Fos", "GFP")
POSITIONS = ("left", "middle", "right")


def numbers(shape=SHAPE, dtype=np.uint16):
    rng = np.random.default_rng(4)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def six_axes(request, tmp_path_factory):
    voxels = numbers()
    path = tmp_path_factory.mktemp("nd2") / "a.nd2"
    return write_nd2(path, voxels, names=NAMES, positions=POSITIONS, compressed=request.param), voxels


def test_ending(tmp_path):
    assert is_nd2(tmp_path / "a.ND2")
    assert not is_nd2(tmp_path / "a.nd2.txt")


def test_inventory(six_axes):
    expected = Inventory(scenes=POSITIONS, channels=3, channel_names=NAMES, times=2)
    assert nd2_inventory(six_axes[0]) == nd2_inventory(six_axes[0], "middle") == expected
    with pytest.raises(SelmaError, match="has no scene top"):
        nd2_inventory(six_axes[0], "top")


def bounds(length):
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(*sorted(ends)))


@given(
    scene=st.integers(0, 2), channel=st.integers(0, 2), time=st.integers(0, 1), box=st.tuples(*map(bounds, (4, 5, 6)))
)
def test_boxes(six_axes, scene, channel, time, box):
    path, voxels = six_axes
    volume = Nd2Volume(path, Choice(scene=POSITIONS[scene], channel=channel, time=time))
    assert (volume.shape, volume.dtype, volume.spacing_um_zyx) == ((4, 5, 6), np.uint16, SPACING)
    assert (volume.plane_wise, volume.read_whole) == (True, False)
    np.testing.assert_array_equal(volume.read(*box), voxels[time, scene, :, channel][box], strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("axes", "shape"), [("zcyx", (4, 1, 5, 6)), ("zcyx", (1, 1, 5, 6)), ("zcyx", (4, 3, 1, 6)), ("cyx", (3, 5, 6))]
)
def test_fewer_axes(tmp_path, axes, shape, dtype):
    voxels = numbers(shape, dtype)
    volume = Nd2Volume(write_nd2(tmp_path / "a.nd2", voxels, axes=axes), Choice(channel=shape[-3] - 1))
    expected = voxels if axes == "zcyx" else voxels[None]
    np.testing.assert_array_equal(volume.read(), expected[:, -1], strict=True)
    assert nd2_inventory(volume.path) == Inventory(channels=shape[-3])


def test_z_before_time(tmp_path):
    voxels = numbers((4, 2, 1, 5, 6))
    volume = Nd2Volume(write_nd2(tmp_path / "a.nd2", voxels, axes="ztcyx"), Choice(time=1))
    np.testing.assert_array_equal(volume.read(), voxels[:, 1, 0], strict=True)


@pytest.mark.parametrize(("stated", "expected"), [((-3, 1.5, 1.5), SPACING), (None, None), ((0, 1.5, 1.5), None)])
def test_voxel_size(tmp_path, stated, expected):
    path = write_nd2(tmp_path / "a.nd2", numbers((4, 1, 5, 6)), axes="zcyx", spacing_um_zyx=stated)
    assert Nd2Volume(path).spacing_um_zyx == expected


@pytest.mark.parametrize(
    ("axes", "colour", "sentence"), [("zcyx", True, "3 colours"), ("ucyx", False, "4 steps of a loop")]
)
def test_further_axes_are_named(tmp_path, axes, colour, sentence):
    path = write_nd2(tmp_path / "a.nd2", numbers((4, 3, 5, 6), np.uint8), axes=axes, colour=colour)
    with pytest.raises(SelmaError, match=f"^{path}: has {sentence}"):
        Nd2Volume(path, Choice(channel=0))


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(channel=0, time=0), "holds 3 images"),
        (Choice(scene="left", time=0), "has 3 channels"),
        (Choice(scene="left", channel=0), "has 2 time points"),
        (Choice(scene="left", channel=0, time=0, level=1), "level 1 is not among them"),
    ],
)
def test_choices(six_axes, choice, sentence):
    with pytest.raises(SelmaError, match=f"^{six_axes[0]}: .*{sentence}"):
        Nd2Volume(six_axes[0], choice)


def test_a_stopped_acquisition_is_an_error(tmp_path):
    """Nd2 itself gives zeros for slices that were not taken."""
    voxels = numbers((2, 4, 1, 5, 6))
    path = write_nd2(tmp_path / "a.nd2", voxels, axes="tzcyx", taken=6)
    np.testing.assert_array_equal(Nd2Volume(path, Choice(time=0)).read(), voxels[0, :, 0])
    with pytest.raises(SelmaError, match=r"a.nd2: 2 slices of 4 were not taken"):
        Nd2Volume(path, Choice(time=1))


@pytest.mark.parametrize("length", [0, 3, 100, 5000, -1, -60])
def test_cut_files_are_named(six_axes, tmp_path, length):
    path = tmp_path / "cut.nd2"
    path.write_bytes(six_axes[0].read_bytes()[:length])
    for read in (Nd2Volume, nd2_inventory):
        with pytest.raises(SelmaError, match=r"cut.nd2: cannot be read, the file is damaged"):
            read(path)


def test_damaged_voxels_are_named(tmp_path):
    path = write_nd2(tmp_path / "a.nd2", numbers((4, 1, 50, 60)), axes="zcyx", compressed=True)
    content = path.read_bytes()
    second = content.index(b"ImageDataSeq|1!") + 4080
    path.write_bytes(content[:second] + bytes(50) + content[second + 50 :])
    volume = Nd2Volume(path)
    np.testing.assert_array_equal(volume.read(slice(1)), numbers((4, 1, 50, 60))[:1, 0])
    with pytest.raises(SelmaError, match=r"a.nd2: cannot be read to its end"):
        volume.read(slice(1, 2))


def test_without_the_library(six_axes, monkeypatch):
    assert ND2_LIBRARY.missing() is None
    monkeypatch.setattr(microscope_libraries, "find_spec", lambda _: None)
    with pytest.raises(SelmaError, match=r"a.nd2: Nikon ND2 needs nd2; .* pip install 'nnunet-selma\[microscopes\]'"):
        Nd2Volume(six_axes[0])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_slice_takes_memory_for_a_slice(tmp_path, compressed):
    voxels = np.ones((60, 1, 200, 210), np.uint16)
    volume = Nd2Volume(write_nd2(tmp_path / "a.nd2", voxels, axes="zcyx", compressed=compressed))
    volume.read(slice(1))  # the headers
    tracemalloc.start()
    volume.read(slice(30, 31))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < voxels.nbytes / 5


def test_a_volume_closes_its_file(six_axes):
    volume = Nd2Volume(six_axes[0], Choice(scene="left", channel=0, time=0))
    volume.read()
    file = volume._file()
    assert not file.closed
    del volume
    gc.collect()
    assert file.closed


def total(volume):
    return int(volume.read().sum())


def test_other_processes_read(six_axes):
    path, voxels = six_axes
    volume = Nd2Volume(path, Choice(scene="right", channel=1, time=1))
    expected = voxels[1, 2, :, 1].sum()
    assert total(volume) == expected
    assert total(pickle.loads(pickle.dumps(volume))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(total, (volume,)) == expected
