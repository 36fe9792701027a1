"""LIF against the arrays that were written."""

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
from nnunet_selma.volumes.lif import LIF_LIBRARY, LifVolume, is_lif, lif_inventory
from tests.volumes.lif_files import write_lif

pytest.importorskip("liffile", reason="liffile needs Python 3.11")

SHAPE = (2, 3, 4, 5, 6)  # t, c, z, y, x
SPACING = (3.0, 2.0, 1.5)
NAMES = ("Green", "Red", "Gray")


def numbers(shape, dtype=np.uint16):
    return np.random.default_rng(4).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory):
    """A file of two images, one of a single stack, and the voxels of each."""
    images = {"Brain": numbers(SHAPE), "Lung": numbers((1, 1, 7, 8, 9))}
    path = write_lif(tmp_path_factory.mktemp("lif") / "a.lif", images, spacing_um_zyx=SPACING, names=NAMES)
    return path, images


def test_ending(tmp_path):
    assert is_lif(tmp_path / "a.LIF")
    assert not is_lif(tmp_path / "a.lifext")


def test_inventory(two_scenes):
    brain = Inventory(scenes=("Brain", "Lung"), channels=3, channel_names=NAMES, times=2)
    assert lif_inventory(two_scenes[0]) == lif_inventory(two_scenes[0], "Brain") == brain
    lung = Inventory(scenes=("Brain", "Lung"), channel_names=NAMES[:1])
    assert lif_inventory(two_scenes[0], "1") == lung


def bounds(length):
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(*sorted(ends)))


@given(channel=st.integers(0, 2), time=st.integers(0, 1), box=st.tuples(*map(bounds, SHAPE[2:])))
def test_boxes(two_scenes, channel, time, box):
    path, images = two_scenes
    volume = LifVolume(path, Choice(scene="Brain", channel=channel, time=time))
    assert (volume.shape, volume.dtype, volume.spacing_um_zyx) == (SHAPE[2:], np.uint16, SPACING)
    assert (volume.plane_wise, volume.read_whole, volume.spacing_guess) == (True, False, None)
    np.testing.assert_array_equal(volume.read(*box), images["Brain"][time, channel][box], strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6)])
def test_a_single_stack(tmp_path, shape, dtype):
    voxels = numbers(shape, dtype)
    volume = LifVolume(write_lif(tmp_path / "a.lif", {"A": voxels}, axes="zyx"), Choice(scene="A", channel=0))
    np.testing.assert_array_equal(volume.read(), voxels, strict=True)
    assert lif_inventory(volume.path).channel_names == ()


@pytest.mark.parametrize(
    ("sizes", "unit", "expected"),
    [((-3, 2, 1.5), "m", SPACING), ((3, 2, 1.5), "pixel", None), ((0, 2, 1.5), "m", None)],
)
def test_voxel_size(tmp_path, sizes, unit, expected):
    path = write_lif(tmp_path / "a.lif", {"A": numbers((4, 5, 6))}, axes="zyx", spacing_um_zyx=sizes, unit=unit)
    assert LifVolume(path).spacing_um_zyx == expected


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ("λzyx", "3 emission wavelengths"),
        ("szyx", "3 tiles of a mosaic"),
        ("azyx", "3 rotations"),
        ("tczx", "y and x are needed"),
    ],
)
def test_further_axes_are_named(tmp_path, axes, sentence):
    path = write_lif(tmp_path / "a.lif", {"A": numbers((3, 4, 5, 6))}, axes=axes)
    with pytest.raises(SelmaError, match=f"^{path}: has .*{sentence}"):
        LifVolume(path)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(), "holds 2 images"),
        (Choice(scene="Heart"), "has no scene Heart"),
        (Choice(scene="Brain", time=0), "has 3 channels"),
        (Choice(scene="Brain", channel=0), "has 2 time points"),
        (Choice(scene="Brain", channel=0, time=2), "no time point 2"),
        (Choice(scene="Lung", channel=1), "no channel 1"),
        (Choice(scene="Lung", level=1), "level 1 is not among them"),
    ],
)
def test_choices(two_scenes, choice, sentence):
    with pytest.raises(SelmaError, match=f"^{two_scenes[0]}: .*{sentence}"):
        LifVolume(two_scenes[0], choice)


@pytest.mark.parametrize("length", [0, 10, 500])
def test_files_without_a_whole_header(two_scenes, tmp_path, length):
    path = tmp_path / "cut.lif"
    path.write_bytes(two_scenes[0].read_bytes()[:length])
    for read in (LifVolume, lif_inventory):
        with pytest.raises(SelmaError, match=r"cut.lif: cannot be read, the file is damaged"):
            read(path)


def test_a_cut_image_is_an_error_where_it_is_cut(tmp_path):
    voxels = numbers((6, 50, 60))
    path = write_lif(tmp_path / "a.lif", {"A": voxels}, axes="zyx")
    path.write_bytes(path.read_bytes()[: -2 * voxels[0].nbytes - 100])
    volume = LifVolume(path)
    np.testing.assert_array_equal(volume.read(slice(3)), voxels[:3])
    with pytest.raises(SelmaError, match=r"a.lif: cannot be read to its end"):
        volume.read(slice(3, 4))


def test_images_of_one_name(tmp_path):
    """liffile keeps the last of them only."""
    path = write_lif(tmp_path / "a.lif", {"A": numbers((4, 5, 6)), "B": numbers((3, 5, 6))}, axes="zyx")
    path.write_bytes(path.read_bytes().replace('"B"'.encode("utf-16-le"), '"A"'.encode("utf-16-le")))
    with pytest.raises(SelmaError, match="holds 2 images, some of the same name"):
        LifVolume(path)


def test_without_the_library(two_scenes, monkeypatch):
    assert LIF_LIBRARY.missing() is None
    monkeypatch.setattr(microscope_libraries, "find_spec", lambda _: None)
    with pytest.raises(
        SelmaError, match=r"a.lif: Leica LIF needs liffile, .* pip install 'nnunet-selma\[microscopes\]'"
    ):
        LifVolume(two_scenes[0])


def test_a_slice_takes_memory_for_a_slice(tmp_path):
    voxels = np.ones((60, 200, 210), np.uint16)
    volume = LifVolume(write_lif(tmp_path / "a.lif", {"A": voxels}, axes="zyx"))
    tracemalloc.start()
    volume.read(slice(30, 31))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < voxels.nbytes / 5


def total(volume):
    return int(volume.read().sum())


def test_other_processes_read(two_scenes):
    path, images = two_scenes
    volume = LifVolume(path, Choice(scene="Lung"))
    expected = images["Lung"].sum()
    assert total(volume) == expected
    assert total(pickle.loads(pickle.dumps(volume))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(total, (volume,)) == expected
