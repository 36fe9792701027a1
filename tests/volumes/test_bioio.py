"""Files through plugins of BioIO, with a plugin that reads NumPy's files."""

import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import bioio
from nnunet_selma.volumes.bioio import (
    BioioVolume,
    bioio_inventory,
    is_bioio_file,
    missing_bioio_plugin,
)
from nnunet_selma.volumes.choice import Choice, Inventory

pytest.importorskip("bioio_base")

SHAPE = (2, 3, 4, 5, 6)  # t, c, z, y, x
SLICES = (1, 1, 1, 5, 6)
NAMES = ("DAPI", "c-Fos", "GFP")


class Plugin:
    """An entry point of a plugin that is loaded from the module beside this file."""

    def __init__(self, name, reader):
        self.name, self.reader = name, reader

    def load(self):
        from tests.volumes import bioio_plugin

        class Module:
            Reader = getattr(bioio_plugin, self.reader)

        return Module


@pytest.fixture(params=["Reader", "PartReader"])
def plugin(request, monkeypatch):
    """The way the plugin reads: chunks or parts."""
    use(monkeypatch, request.param)
    return request.param


@pytest.fixture
def chunk_plugin(monkeypatch):
    use(monkeypatch, "Reader")


def use(monkeypatch, reader, name="bioio-dv"):
    monkeypatch.setattr(bioio, "entry_points", lambda group: [Plugin(name, reader)])


def save(
    path,
    data,
    axes="TCZYX",
    *,
    chunks=SLICES,
    sizes=(3.0, 2.0, 1.5),
    unit="um",
    names=NAMES,
    levels=1,
    scenes=("Image:0",),
):
    """Write images of these scenes."""
    data = np.asarray(data)
    with path.open("wb") as file:
        stored = {
            "data": data if len(scenes) > 1 else data[None],
            "axes": axes,
            "chunks": chunks,
            "sizes": sizes,
            "unit": unit,
        }
        np.savez(file, **stored, names=names, levels=levels, scenes=scenes)
    return path


def numbers(shape=SHAPE):
    return np.random.default_rng(4).integers(0, 65535, shape, dtype=np.uint16, endpoint=True)


def computed():
    from tests.volumes.bioio_plugin import Reader

    return Reader.computed


@pytest.mark.parametrize("name", ["a.oir", "a.OIR", "b.oib", "c.d.vsi", "a.sldy"])
def test_endings(tmp_path, name):
    assert is_bioio_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.czi", "a.lif", "a.nd2", "oir", "a.oir.txt"])
def test_other_endings(tmp_path, name):
    assert not is_bioio_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a.sldy", "SlideBook needs bioio-sldy; install it with: pip install bioio-sldy"),
        ("a.oir", "Olympus OIR needs bioio-bioformats; install it with: pip install bioio-bioformats"),
    ],
)
def test_a_missing_plugin_is_named(tmp_path, monkeypatch, name, sentence):
    use(monkeypatch, "Reader")
    path = tmp_path / name
    path.write_bytes(b"anything")
    assert missing_bioio_plugin(path) == sentence
    for read in (BioioVolume, bioio_inventory):
        with pytest.raises(SelmaError) as error:
            read(path)
        assert str(error.value) == f"{path}: {sentence}"
    assert missing_bioio_plugin(tmp_path / "a.dv") is None


def test_inventory(plugin, tmp_path):
    path = save(tmp_path / "a.dv", numbers())
    assert bioio_inventory(path) == Inventory(channels=3, channel_names=NAMES, times=2)


def test_inventory_of_scenes_and_levels(plugin, tmp_path):
    path = save(tmp_path / "a.dv", numbers((2, *SHAPE)), scenes=("left", "left"), levels=2, names=["Channel:0:0"] * 3)
    expected = Inventory(scenes=("left #0", "left #1"), channels=3, times=2, levels=2)
    assert bioio_inventory(path) == bioio_inventory(path, "left #1") == expected


def test_companions(chunk_plugin, tmp_path, monkeypatch):
    use(monkeypatch, "Reader", "bioio-bioformats")
    path = save(tmp_path / "a.oif", numbers())
    assert bioio_inventory(path).companions == ()
    (tmp_path / "a.oif.files").mkdir()
    assert bioio_inventory(path).companions == (tmp_path / "a.oif.files",)


def bounds(length):
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(*sorted(ends)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    axes=st.permutations("TCZYX").map("".join),
    channel=st.integers(0, 2),
    time=st.integers(0, 1),
    box=st.tuples(*map(bounds, SHAPE[2:])),
)
def test_boxes(plugin, tmp_path, axes, channel, time, box):
    voxels = numbers()
    order = ["TCZYX".index(axis) for axis in axes]
    path = save(tmp_path / "a.dv", voxels.transpose(order), axes, chunks=[SLICES[axis] for axis in order])
    volume = BioioVolume(path, Choice(channel=channel, time=time))
    assert (volume.shape, volume.dtype, volume.spacing_um_zyx) == (SHAPE[2:], np.uint16, (3.0, 2.0, 1.5))
    np.testing.assert_array_equal(volume.read(*box), voxels[time, channel][box], strict=True)


def test_scenes(plugin, tmp_path):
    voxels = numbers((2, *SHAPE))
    path = save(tmp_path / "a.dv", voxels, scenes=("left", "right"))
    volume = BioioVolume(path, Choice(scene="right", channel=2, time=0))
    np.testing.assert_array_equal(volume.read(), voxels[1, 0, 2], strict=True)
    with pytest.raises(SelmaError, match=r"a.dv: holds 2 images: 0 \(left\), 1 \(right\)"):
        BioioVolume(path, Choice(channel=2, time=0))


def test_levels(plugin, tmp_path):
    voxels = numbers((4, 11, 12))
    path = save(tmp_path / "a.dv", voxels, "ZYX", chunks=(1, 11, 12), levels=2, names=())
    volume = BioioVolume(path, Choice(level=1))
    np.testing.assert_array_equal(volume.read(), voxels[:, ::2, ::2], strict=True)
    assert volume.level_factor_zyx == (1.0, 2.0, 2.0)
    assert volume.spacing_um_zyx == (3.0, 4.0, 3.0)
    with pytest.raises(SelmaError, match="level 2 is not among them"):
        BioioVolume(path, Choice(level=2))


@pytest.mark.parametrize(
    ("sizes", "unit", "expected", "guess"),
    [
        ((3, 2, 1.5), "mm", (3000.0, 2000.0, 1500.0), None),
        ((-0.003, 0.002, 0.0015), "mm", (3.0, 2.0, 1.5), None),
        ((3, 2, 1.5), "", (3.0, 2.0, 1.5), "bioio-dv states no unit; its voxel size 3 × 2 × 1.5 is taken as µm"),
        ((0, 2, 1.5), "um", None, None),
        ((3, 2, 1.5), "second", None, None),
        ((1, 1, 1), "um", (1.0, 1.0, 1.0), None),
    ],
)
def test_units(plugin, tmp_path, sizes, unit, expected, guess):
    volume = BioioVolume(save(tmp_path / "a.dv", numbers((4, 5, 6)), "ZYX", chunks=SLICES[2:], sizes=sizes, unit=unit))
    assert volume.spacing_um_zyx == expected
    assert volume.spacing_guess == guess


@pytest.mark.parametrize(
    ("axis", "sentence"),
    [("S", "3 colours"), ("M", "3 tiles of a mosaic"), ("V", "3 views"), ("I", "3 illuminations"), ("Q", "3 entries")],
)
def test_further_axes_are_named(plugin, tmp_path, axis, sentence):
    path = save(tmp_path / "a.dv", numbers((3, 4, 5, 6)), f"{axis}ZYX", chunks=SLICES[1:])
    with pytest.raises(SelmaError, match=f"^{path}: has {sentence}.* \\(axis {axis}\\)"):
        BioioVolume(path)
    single = save(tmp_path / "b.dv", numbers((1, 4, 5, 6)), f"{axis}ZYX", chunks=SLICES[1:])
    np.testing.assert_array_equal(BioioVolume(single).read(), numbers((1, 4, 5, 6))[0])


@pytest.mark.parametrize(
    ("chunk", "read_whole", "plane_wise", "chunk_zyx"),
    [
        ((1, 5, 6), False, True, None),
        ((4, 5, 6), True, True, None),
        ((2, 5, 6), False, True, (2, 5, 6)),
        ((2, 3, 6), False, False, (2, 3, 6)),
    ],
)
def test_chunks_decide_how_it_is_read(chunk_plugin, tmp_path, chunk, read_whole, plane_wise, chunk_zyx):
    path = save(tmp_path / "a.dv", numbers(), chunks=(1, 1, *chunk))
    volume = BioioVolume(path, Choice(channel=0, time=0))
    assert (volume.read_whole, volume.plane_wise, volume.chunk_zyx) == (read_whole, plane_wise, chunk_zyx)
    computed().clear()
    for number in range(2):
        np.testing.assert_array_equal(
            volume.read(slice(number, number + 1), slice(2)), numbers()[0, 0, number : number + 1, :2]
        )
    # chunks that were not asked for are not read; an image that is one chunk is read once
    assert sum(shape[2:] == chunk for shape in computed()) == (1 if read_whole else 2)


def test_parts_are_read_alone(monkeypatch, tmp_path):
    use(monkeypatch, "PartReader")
    volume = BioioVolume(save(tmp_path / "a.dv", numbers()), Choice(channel=1, time=1))
    assert (volume.read_whole, volume.plane_wise, volume.chunk_zyx) == (False, True, None)
    computed().clear()
    volume.read(slice(1, 3), slice(0, 2))
    assert computed() == [(2, 2, 6)]


@pytest.mark.parametrize("content", [b"", b"no image at all", b"PK\x03\x04" + bytes(50)])
def test_damaged_files_are_named(plugin, tmp_path, content):
    path = tmp_path / "a.dv"
    path.write_bytes(content)
    for read in (BioioVolume, bioio_inventory):
        with pytest.raises(SelmaError, match=r"a.dv: cannot be read, the file is damaged"):
            read(path)


def test_a_plugin_that_cannot_be_loaded(monkeypatch, tmp_path):
    use(monkeypatch, "NoReader")
    with pytest.raises(SelmaError, match=r"a.dv: bioio-dv is installed but cannot be loaded"):
        BioioVolume(save(tmp_path / "a.dv", numbers()))


def test_errors_of_reading_are_named(plugin, tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("a chunk is damaged")

    monkeypatch.setattr("tests.volumes.bioio_plugin._counted", fail)
    volume = BioioVolume(save(tmp_path / "a.dv", numbers()), Choice(channel=0, time=0))
    with pytest.raises(SelmaError, match=r"a.dv: cannot be read to its end"):
        volume.read()


def total(volume):
    return int(volume.read().sum())


def test_other_processes_read(plugin, tmp_path):
    volume = BioioVolume(save(tmp_path / "a.dv", numbers()), Choice(channel=1, time=1))
    expected = numbers()[1, 1].sum()
    assert total(volume) == expected
    assert total(pickle.loads(pickle.dumps(volume))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(total, (volume,)) == expected
