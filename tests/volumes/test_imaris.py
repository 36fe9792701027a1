"""Imaris files after the published layout, against the arrays that were written."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import hdf5
from nnunet_selma.volumes.choice import Choice, Inventory
from nnunet_selma.volumes.imaris import ImarisVolume, imaris_inventory, is_imaris
from tests.volumes.microscope_files import pyramid, write_imaris

h5py = pytest.importorskip("h5py")

SHAPE = (11, 21, 29)
SPACING = (6.0, 1.6, 1.5)
ORIGIN = (-30.0, 400.0, 12.5)


@pytest.fixture
def channels(rng):
    return [rng.integers(0, 60000, SHAPE, dtype=np.uint16) for _ in range(2)]


@pytest.fixture
def brain(tmp_path, channels):
    return write_imaris(
        tmp_path / "brain.ims", channels, spacing_um_zyx=SPACING, origin_um_zyx=ORIGIN, names=("auto", "488"), times=2
    )


def edit(path, group, **attributes):
    """Overwrite attributes of a group, or delete those that are None."""
    with h5py.File(path, "a") as file:
        for name, value in attributes.items():
            if value is None:
                del file[group].attrs[name]
            else:
                file[group].attrs[name] = value
    return path


def read_in_child(volume, boxes, answers):
    answers.put([volume.read(*box) for box in boxes])


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_image_of_a_file(brain, channels, channel, time, level):
    volume = ImarisVolume(brain, Choice(channel=channel, time=time, level=level))
    images, factors = pyramid(channels[channel], 3, SPACING)
    assert volume.dtype == np.uint16
    np.testing.assert_array_equal(volume.read(), images[level] + time)
    assert volume.shape == images[level].shape
    extent = np.array(SPACING) * SHAPE
    np.testing.assert_allclose(volume.spacing_um_zyx, extent / images[level].shape, atol=1e-6)
    np.testing.assert_allclose(volume.level_factor_zyx, np.array(SHAPE) / images[level].shape)
    # the first voxel begins at the face of the image
    np.testing.assert_allclose(volume.origin_um_zyx, np.array(ORIGIN) + np.array(volume.spacing_um_zyx) / 2, atol=1e-4)
    assert volume.spacing_guess is None
    assert factors[2].tolist() == [1, 4, 4]


def test_the_inventory_of_a_file(brain):
    assert imaris_inventory(brain) == Inventory(channels=2, channel_names=("auto", "488"), times=2, levels=3)
    plain = write_imaris(brain.with_name("b.ims"), [np.ones(SHAPE, np.uint8)], spacing_um_zyx=SPACING, levels=1)
    assert imaris_inventory(plain) == Inventory()


def test_flags_for_a_file_in_chunks_and_for_one_without(tmp_path, brain, channels):
    volume = ImarisVolume(brain, Choice(channel=0, time=0))
    assert (volume.chunk_zyx, volume.plane_wise, volume.read_in_threads) == ((4, 8, 8), False, False)
    whole = write_imaris(tmp_path / "whole.ims", channels[:1], spacing_um_zyx=SPACING, chunks=None)
    volume = ImarisVolume(whole)
    assert volume.chunk_zyx is None
    np.testing.assert_array_equal(volume.read(z=slice(3, 9)), channels[0][3:9])


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
def test_voxel_types_and_padding(tmp_path, rng, dtype, padded):
    voxels = rng.integers(0, 255, SHAPE).astype(dtype)
    path = write_imaris(tmp_path / "b.ims", [voxels], spacing_um_zyx=SPACING, padded=padded)
    volume = ImarisVolume(path)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.read(), voxels)


def test_big_endian_voxels_become_native(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", [channels[0].astype(">u2")], spacing_um_zyx=SPACING, levels=1)
    volume = ImarisVolume(path)
    assert volume.read().dtype == volume.dtype == np.dtype("uint16")
    np.testing.assert_array_equal(volume.read(), channels[0])


@pytest.mark.parametrize(
    "encode",
    [
        str,
        lambda text: np.bytes_(str(text)),
        lambda text: np.array([str(text)], h5py.string_dtype()),
        lambda text: np.frombuffer(f"{text}\0".encode(), "u1"),
        lambda text: text,
    ],
    ids=["string", "bytes", "array", "codes", "number"],
)
def test_attributes_in_other_encodings(tmp_path, channels, encode):
    path = write_imaris(
        tmp_path / "b.ims",
        channels,
        spacing_um_zyx=SPACING,
        names=("a", "b"),
        encode=lambda text: encode(text) if not isinstance(text, str) or encode("") != "" else text,
    )
    volume = ImarisVolume(path, Choice(channel=1, level=1))
    np.testing.assert_array_equal(volume.read(), pyramid(channels[1], 2, SPACING)[0][1])
    assert volume.spacing_um_zyx == pytest.approx(np.array(SPACING) * SHAPE / volume.shape, abs=1e-6)
    assert imaris_inventory(path).channel_names == ("a", "b")


@pytest.mark.parametrize(("unit", "um"), [("um", 1.0), ("µm", 1.0), ("mm", 1000.0), ("nm", 0.001)])
def test_units(tmp_path, channels, unit, um):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=[s / um for s in SPACING], unit=unit)
    volume = ImarisVolume(path)
    assert volume.spacing_um_zyx == pytest.approx(SPACING)
    assert volume.spacing_guess is None


def test_extents_without_a_unit_are_um_and_say_so(tmp_path, channels):
    volume = ImarisVolume(write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, unit=None))
    assert volume.spacing_um_zyx == pytest.approx(SPACING)
    assert volume.spacing_guess == (
        "the file names no unit; its voxel size 6 × 1.6 × 1.5 is taken as µm, in which Imaris measures"
    )


@pytest.mark.parametrize("change", [{"ExtMax1": "0.0", "ExtMin1": "0.0"}, {"ExtMax1": None}, {"ExtMin2": "nan"}])
def test_extents_that_say_nothing(tmp_path, channels, change):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING)
    volume = ImarisVolume(edit(path, "DataSetInfo/Image", **change))
    assert volume.spacing_um_zyx is None
    assert volume.origin_um_zyx is None


def test_an_unknown_unit_leaves_the_voxel_size_open(tmp_path, channels):
    volume = ImarisVolume(write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, unit="pixel"))
    assert volume.spacing_um_zyx is None


def test_extents_that_run_backwards_are_named(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING)
    edit(path, "DataSetInfo/Image", ExtMin1="133.6", ExtMax1="100.0")
    volume = ImarisVolume(path)
    assert volume.spacing_um_zyx == pytest.approx(SPACING)
    assert volume.origin_um_zyx == pytest.approx((3.0, -132.8, 0.75))
    assert volume.spacing_guess.startswith("the extents run backwards along y; ")


def test_without_image_sizes_the_size_of_the_image_or_of_the_voxels_counts(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, levels=2)
    for level in (0, 1):
        group = f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel 0"
        edit(path, group, ImageSizeX=None, ImageSizeY=None, ImageSizeZ=None)
    assert ImarisVolume(path).shape == SHAPE
    edit(path, "DataSetInfo/Image", X=None, Y=None, Z=None)
    assert ImarisVolume(path).shape == (12, 24, 32)


def test_several_data_sets_are_scenes(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, levels=2)
    write_imaris(path, channels, spacing_um_zyx=(3.0, 2.0, 1.0), data_set="1")
    assert imaris_inventory(path).scenes == ("DataSet", "DataSet1")
    assert imaris_inventory(path).channels == 1
    assert imaris_inventory(path, "DataSet1") == Inventory(scenes=("DataSet", "DataSet1"), channels=2, levels=3)
    with pytest.raises(SelmaError, match=r"b\.ims: holds 2 images: 0 \(DataSet\), 1 \(DataSet1\)"):
        ImarisVolume(path)
    volume = ImarisVolume(path, Choice(scene="1", channel=1))
    assert volume.spacing_um_zyx == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(volume.read(), channels[1])


def test_a_data_set_in_another_file(tmp_path, channels):
    part = write_imaris(tmp_path / "tile.ims", channels[:1], spacing_um_zyx=SPACING, levels=1)
    path = tmp_path / "all.ims"
    with h5py.File(part) as source, h5py.File(path, "w") as file:
        source.copy("DataSetInfo", file)
        file["DataSet/ResolutionLevel 0"] = h5py.ExternalLink("tile.ims", "/DataSet/ResolutionLevel 0")
    assert imaris_inventory(path).companions == (part,)
    volume = ImarisVolume(path)
    np.testing.assert_array_equal(volume.read(), channels[0])
    part.rename(tmp_path / "elsewhere")
    for ask in (imaris_inventory, ImarisVolume):
        with pytest.raises(SelmaError, match=r"all\.ims: a part of it lies in .*tile\.ims, which is missing"):
            ask(path)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(), "has 2 channels"),
        (Choice(channel=2, time=0), "there is no channel 2"),
        (Choice(channel=0), "has 2 time points"),
        (Choice(channel=0, time=2), "there is no time point 2"),
        (Choice(channel=0, time=0, level=3), "has 3 resolution levels, level 3 is not among them"),
        (Choice(scene="tile", channel=0, time=0), "has no scene tile; it holds a single image, choose none"),
    ],
)
def test_choices_that_are_missing_or_wrong(brain, choice, sentence):
    with pytest.raises(SelmaError, match=rf"brain\.ims: .*{sentence}"):
        ImarisVolume(brain, choice)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box(brain, channels, data):
    volume = ImarisVolume(brain, Choice(channel=1, time=1))
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2)))) for length in SHAPE)
    np.testing.assert_array_equal(volume.read(*box), channels[1][box] + 1)


def test_reading_after_pickling_and_in_a_fork(brain, channels):
    volume = ImarisVolume(brain, Choice(channel=0, time=0))
    boxes = [(slice(z, z + 3),) for z in range(0, 11, 3)]
    volume.read(*boxes[0])
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.read(), channels[0])
    if sys.platform != "linux":
        return
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=read_in_child, args=(volume, boxes, answers)) for _ in range(2)]
    for child in children:
        child.start()
    mine = [volume.read(*box) for box in boxes]
    for pieces in [answers.get(timeout=60) for _ in children] + [mine]:
        np.testing.assert_array_equal(np.concatenate(pieces), channels[0])
    for child in children:
        child.join(60)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the bytes read with /proc")
def test_planes_in_order_decode_each_chunk_once(tmp_path, rng, monkeypatch):
    """Each chunk is read from the file once, though sixteen planes cut it."""
    voxels = rng.integers(0, 60000, (32, 256, 256), dtype=np.uint16)
    path = write_imaris(tmp_path / "b.ims", [voxels], spacing_um_zyx=SPACING, levels=1, chunks=(16, 64, 64))

    def total():
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    def bytes_read(volume):
        before = total()
        for z in range(32):
            volume.read(slice(z, z + 1))
        return total() - before

    stored = path.stat().st_size
    assert bytes_read(ImarisVolume(path)) < 1.5 * stored
    # less memory than a layer: the layer is read again for each plane
    monkeypatch.setattr(hdf5, "CACHE_BYTES", 64 * 64 * 16 * 2)
    assert bytes_read(ImarisVolume(path)) > 8 * stored


def test_a_file_that_is_open_with_locks(brain, channels):
    """HDF5 opens a file twice in one process only with the same locks."""
    with h5py.File(brain):
        np.testing.assert_array_equal(ImarisVolume(brain, Choice(channel=0, time=0)).read(), channels[0])


def test_a_file_that_was_copied_while_it_was_written(tmp_path):
    with h5py.File(tmp_path / "a.ims", "w", libver="latest") as file:
        file.create_group("DataSet")
        file.flush()
        shutil.copy(tmp_path / "a.ims", tmp_path / "b.ims")
    with pytest.raises(SelmaError, match=r"b\.ims: was not closed by the program that writes it"):
        ImarisVolume(tmp_path / "b.ims")


def test_files_by_name(tmp_path):
    assert is_imaris(tmp_path / "A.IMS")
    assert not is_imaris(tmp_path / "ims")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes(bytes(range(256)) * 20)


def without_voxels(path):
    with h5py.File(path, "a") as file:
        del file["DataSet"]


def without_channels(path):
    with h5py.File(path, "a") as file:
        del file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"]


def oversized(path):
    edit(path, "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0", ImageSizeX="1000")


def classic(path):
    path.write_bytes(b"II*\0" + bytes(200))


DAMAGED = {
    cut: "cut short or damaged; copy it again",
    emptied: "the file is empty; copy it again",
    noise: "the file is damaged or no image",
    without_voxels: "the file is damaged or no image",
    without_channels: "the file is damaged or no image",
    classic: r"is a file of Imaris before 5\.5, which is no HDF5",
}


@pytest.mark.parametrize("harm", DAMAGED, ids=lambda harm: harm.__name__)
def test_damaged_files(tmp_path, channels, harm):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING)
    harm(path)
    for ask in (imaris_inventory, ImarisVolume):
        with pytest.raises(SelmaError, match=rf"b\.ims: .*{DAMAGED[harm]}"):
            ask(path)


def test_an_image_larger_than_its_voxels(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING)
    oversized(path)
    with pytest.raises(SelmaError, match=r"b\.ims: cannot be read"):
        ImarisVolume(path)


def test_a_damaged_chunk(tmp_path, channels):
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, levels=1)
    with h5py.File(path) as file:
        chunk = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    volume = ImarisVolume(path)
    with pytest.raises(SelmaError, match=r"b\.ims: cannot be read to its end"):
        volume.read()
    np.testing.assert_array_equal(volume.read(slice(4, 11)), channels[0][4:])


def test_a_compression_of_hdf5plugin(tmp_path, channels):
    """LZ4, which newer files of Imaris use, is read in a process that has not loaded the plugin."""
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING, compression=hdf5plugin.LZ4())
    read = "import sys; from nnunet_selma.volumes import open_volume; print(int(open_volume(sys.argv[1]).read().sum(dtype='u8')))"
    answer = subprocess.run([sys.executable, "-c", read, str(path)], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == channels[0].sum(dtype=np.uint64)
    np.testing.assert_array_equal(ImarisVolume(path).read(), channels[0])


def test_a_compression_that_is_not_installed(tmp_path):
    path = tmp_path / "b.ims"
    write_imaris(path, [np.ones(SHAPE, np.uint8)], spacing_um_zyx=SPACING, levels=1, compression=None)
    place = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"
    with h5py.File(path, "a") as file:
        del file[place]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 8, 8))
        properties.set_filter(299, h5py.h5z.FLAG_OPTIONAL, ())  # reserved for trials, nobody's filter
        space = h5py.h5s.create_simple((12, 24, 32))
        h5py.h5d.create(file.id, place.encode(), h5py.h5t.NATIVE_UINT8, space, properties)
    with pytest.raises(SelmaError, match=r"b\.ims: is compressed by HDF5's filter 299 .*pip install hdf5plugin"):
        ImarisVolume(path)


def test_without_h5py(brain, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for ask in (imaris_inventory, ImarisVolume):
        with pytest.raises(SelmaError, match=r"brain\.ims: .* needs h5py; .*pip install 'nnunet-selma\[hdf5\]'"):
            ask(brain)
