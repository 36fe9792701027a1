"""HDF5 and N5 of BigDataViewer after its published layout, and as npy2bdv writes it, against the arrays that were written."""

import pickle
import re
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.bigdataviewer import BigDataViewerVolume, bigdataviewer_inventory, is_bigdataviewer
from nnunet_selma.volumes.choice import Choice, Inventory
from nnunet_selma.volumes.hdf5 import other_hdf5
from nnunet_selma.volumes.imaris import ImarisVolume
from tests.volumes.microscope_files import pyramid, scaling, write_bdv, write_imaris

h5py = pytest.importorskip("h5py")

SHAPE = (11, 21, 29)
SPACING = (6.0, 1.6, 1.5)
XYZ = np.array(SPACING)[::-1]


@pytest.fixture
def channels(rng):
    return [rng.integers(0, 60000, SHAPE, dtype=np.uint16) for _ in range(2)]


@pytest.fixture(params=[".h5", ".n5"])
def kept(request):
    """Ending of the voxels."""
    return request.param


@pytest.fixture
def brain(tmp_path, channels, kept):
    """A dataset of two tiles, two channels and two time points."""
    return write_bdv(
        tmp_path / f"brain{kept}",
        channels,
        spacing_um_zyx=SPACING,
        names=("auto", "488"),
        scenes=("left", "right"),
        times=2,
        transforms=[scaling(XYZ, XYZ * (4, 3, 2))],
    )


def edit(xml, old, new):
    """Replace a text in an XML file."""
    text = xml.read_text(encoding="utf-8")
    assert old in text
    xml.write_text(text.replace(old, new), encoding="utf-8")
    return xml


@pytest.mark.parametrize("given", ["xml", "voxels"])
@pytest.mark.parametrize("scene", [0, 1])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_image_of_a_dataset(brain, channels, kept, given, scene, channel, level):
    for time in (0, 1):
        choice = Choice(scene=f"tile {('left', 'right')[scene]}", channel=channel, time=time, level=level)
        volume = BigDataViewerVolume(brain if given == "xml" else brain.with_suffix(kept), choice)
        images, factors = pyramid(channels[channel], 3, SPACING)
        assert volume.dtype == np.uint16
        np.testing.assert_array_equal(volume.read(), images[level] + 10 * scene + time)
    factor = factors[level]
    assert volume.level_factor_zyx == tuple(factor)
    assert volume.chunk_zyx == tuple(np.minimum((4, 8, 8), volume.shape))
    assert volume.plane_wise is False
    assert volume.spacing_um_zyx == pytest.approx(np.array(SPACING) * factor)
    # all levels cover the same corner, 2, 3 and 4 voxels away
    assert volume.origin_um_zyx == pytest.approx(np.array(SPACING) * ((2, 3, 4) + (factor - 1) / 2))


def test_the_inventory_of_a_dataset(brain, kept):
    expected = {
        "scenes": ("tile left", "tile right"),
        "channels": 2,
        "channel_names": ("auto", "488"),
        "times": 2,
        "levels": 3,
    }
    voxels = brain.with_suffix(kept)
    assert bigdataviewer_inventory(brain) == Inventory(**expected, companions=(voxels,))
    assert bigdataviewer_inventory(voxels, "tile right") == Inventory(**expected, companions=(brain,))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_voxel_types(tmp_path, rng, dtype):
    """Signed integers of 16 bits are unsigned ones, unless the dataset names them."""
    voxels = rng.integers(0, 255, SHAPE).astype(dtype)
    if dtype == "uint16":
        voxels += 60000
    xml = write_bdv(tmp_path / "b.h5", [voxels], spacing_um_zyx=SPACING, levels=1)
    if dtype == "int16":
        voxels -= 300
        with h5py.File(tmp_path / "b.h5", "a") as file:
            file["t00000/s00/0/cells"][:] = voxels
            file["s00"].attrs["dataType"] = np.bytes_("int16")
    volume = BigDataViewerVolume(xml)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.read(), voxels)


TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0]])
SHEAR = np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("transforms", "spacing", "place"),
    [
        ([scaling(XYZ)], SPACING, (0, 0, 0)),  # Fiji's export: the world is in µm
        ([scaling(XYZ / XYZ.min())], SPACING, (0, 0, 0)),  # BigStitcher's import: in voxels of the shortest edge
        ([scaling((1, 1, 1), (30, 20, 10)), scaling(XYZ / XYZ.min())], SPACING, (15.0, 30.0, 45.0)),
        ([scaling((1, 1, 1), (30, 20, 10)), scaling(XYZ)], SPACING, (10.0, 20.0, 30.0)),
        # the last of the list is applied first: a move before the calibration is in voxels
        ([scaling(XYZ), scaling((1, 1, 1), (3, 2, 1))], SPACING, (6.0, 3.2, 4.5)),
        # a registration that stretches z by a fifth
        ([scaling((1, 1, 1.2), (0, 0, 9)), scaling(XYZ / XYZ.min())], (7.2, 1.6, 1.5), (13.5, 0, 0)),
        ([], SPACING, (0, 0, 0)),
    ],
)
def test_voxel_size_and_place_come_from_size_and_registration(tmp_path, channels, kept, transforms, spacing, place):
    xml = write_bdv(tmp_path / f"b{kept}", channels[:1], spacing_um_zyx=SPACING, transforms=transforms)
    volume = BigDataViewerVolume(xml)
    assert volume.spacing_um_zyx == pytest.approx(spacing)
    assert volume.origin_um_zyx == pytest.approx(place)
    assert volume.spacing_guess is None


def test_a_registration_out_of_proportion_is_named(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, transforms=[scaling((1, 1, 1), (4, 3, 2))])
    volume = BigDataViewerVolume(xml)
    assert volume.spacing_um_zyx == pytest.approx(SPACING)
    assert volume.origin_voxels_zyx == (2, 3, 4)
    assert volume.spacing_guess == (
        "the registration scales x, y and z by 1 × 1 × 1, which is not in proportion to the voxel size 1.5 × 1.6 × 6; the voxel size is taken"
    )


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [(TURN, "turns or shears"), (SHEAR, "turns or shears"), (scaling((1, -1, 1)), "mirrors")],
)
def test_registrations_that_are_refused(tmp_path, channels, matrix, fault):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, transforms=[matrix, scaling(XYZ)])
    sentence = rf"b\.xml: the registration of setup 0 {fault} the image, .*; fuse the dataset in BigStitcher"
    with pytest.raises(SelmaError, match=sentence):
        BigDataViewerVolume(xml)


def test_a_rotation_below_rounding_is_none(tmp_path, channels):
    matrix = scaling((1, 1, 1))
    matrix[0, 1] = 1e-6
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, transforms=[matrix, scaling(XYZ)])
    assert BigDataViewerVolume(xml).spacing_um_zyx == pytest.approx(SPACING)


@pytest.mark.parametrize(
    ("unit", "spacing", "guess"),
    [
        ("micron", SPACING, None),
        ("mm", tuple(1000 * s for s in SPACING), None),
        ("px", None, None),
        (None, SPACING, "the header names no unit; its voxel size 6 × 1.6 × 1.5 is taken as µm"),
    ],
)
@pytest.mark.parametrize("level", [0, 1])
def test_units(tmp_path, channels, kept, unit, spacing, guess, level):
    xml = write_bdv(tmp_path / f"b{kept}", channels[:1], spacing_um_zyx=SPACING, unit=unit)
    volume = BigDataViewerVolume(xml, Choice(level=level))
    assert volume.spacing_guess == guess
    if spacing is None:
        assert volume.spacing_um_zyx is None
    else:
        assert volume.spacing_um_zyx == pytest.approx(np.array(spacing) * volume.level_factor_zyx)


def test_a_setup_without_a_voxel_size(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    edit(xml, "voxelSize", "other")
    assert BigDataViewerVolume(xml).spacing_um_zyx is None


@pytest.mark.parametrize("timepoints", ["range", "list", "pattern"])
def test_time_points(tmp_path, channels, timepoints):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, times=3, levels=1, timepoints=timepoints)
    np.testing.assert_array_equal(BigDataViewerVolume(xml, Choice(time=2)).read(), channels[0] + 2)


def test_a_pattern_with_gaps_counts_its_time_points(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, times=5, levels=1, timepoints="pattern")
    edit(xml, "0-4", "0-2:2, 4")
    assert bigdataviewer_inventory(xml).times == 3
    np.testing.assert_array_equal(BigDataViewerVolume(xml, Choice(time=2)).read(), channels[0] + 4)


def test_views_that_were_not_recorded(tmp_path, channels, kept):
    xml = write_bdv(tmp_path / f"b{kept}", channels, spacing_um_zyx=SPACING, times=2, missing=[(0, 1)])
    assert bigdataviewer_inventory(xml).levels == 3
    with pytest.raises(SelmaError, match=r"b\.xml: setup 1 was not recorded at the time point 0"):
        BigDataViewerVolume(xml, Choice(channel=1, time=0))
    np.testing.assert_array_equal(BigDataViewerVolume(xml, Choice(channel=1, time=1)).read(), channels[1] + 1)


def test_parts_in_files_of_their_own(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, times=2, partitioned=True)
    parts = (tmp_path / "b-00-00.h5", tmp_path / "b-01-00.h5")
    assert bigdataviewer_inventory(xml).companions == (tmp_path / "b.h5", *parts)
    assert bigdataviewer_inventory(tmp_path / "b.h5").companions == (xml, *parts)
    volume = BigDataViewerVolume(xml, Choice(time=1))
    np.testing.assert_array_equal(volume.read(), channels[0] + 1)
    with pytest.raises(SelmaError, match=r"b-01-00\.h5: is a part of the dataset that .*b\.xml describes; give that"):
        BigDataViewerVolume(parts[1])
    parts[1].unlink()
    np.testing.assert_array_equal(BigDataViewerVolume(xml, Choice(time=0)).read(), channels[0])
    with pytest.raises(SelmaError, match=r"b\.h5: a part of it lies in .*b-01-00\.h5, which is missing"):
        BigDataViewerVolume(xml, Choice(time=1))
    xml.unlink()
    assert bigdataviewer_inventory(tmp_path / "b.h5").companions == parts


def test_voxels_without_an_xml(brain, channels, kept):
    """Setups are scenes without a voxel size, because nothing says what they are."""
    brain.unlink()
    voxels = brain.with_suffix(kept)
    inventory = bigdataviewer_inventory(voxels)
    assert inventory == Inventory(scenes=("setup 0", "setup 1", "setup 2", "setup 3"), times=2, levels=3)
    volume = BigDataViewerVolume(voxels, Choice(scene="setup 3", time=1, level=1))
    np.testing.assert_array_equal(volume.read(), pyramid(channels[1], 2, SPACING)[0][1] + 11)
    assert (volume.spacing_um_zyx, volume.origin_um_zyx) == (None, None)
    assert volume.level_factor_zyx == (1, 2, 2)


def test_without_resolutions_the_shapes_give_the_factors(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", [channels[0][:, :20, :28]], spacing_um_zyx=SPACING)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        del file["s00"]
    assert BigDataViewerVolume(xml, Choice(level=1)).level_factor_zyx == (1, 2, 2)


def test_the_xml_that_names_a_file(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    other = shutil.copy(xml, tmp_path / "registered.xml")
    (tmp_path / "notes.xml").write_text("<notes/>")
    (tmp_path / "torn.xml").write_text("<SpimData><oh")
    assert bigdataviewer_inventory(tmp_path / "b.h5").companions == (xml,)
    xml.unlink()
    assert bigdataviewer_inventory(tmp_path / "b.h5").companions == (other,)
    shutil.copy(other, tmp_path / "again.xml")
    with pytest.raises(SelmaError, match=r"b\.h5: is described by again\.xml, registered\.xml; give one of them"):
        BigDataViewerVolume(tmp_path / "b.h5")


def test_setups_without_attributes_are_scenes(brain):
    text = re.sub(r"<attributes>.*?</attributes>", "", brain.read_text())
    brain.write_text(text)
    assert bigdataviewer_inventory(brain).scenes == ("setup 0", "setup 1", "setup 2", "setup 3")


def test_tiles_of_one_name_are_told_apart(tmp_path, channels, kept):
    path = write_bdv(tmp_path / f"b{kept}", channels, spacing_um_zyx=SPACING, scenes=("left", "left"), levels=1)
    assert bigdataviewer_inventory(path).scenes == ("tile left #0", "tile left #1")
    for scene in range(2):
        volume = BigDataViewerVolume(path, Choice(scene=f"tile left #{scene}", channel=1))
        np.testing.assert_array_equal(volume.read(), channels[1] + 10 * scene)


def test_setups_of_one_name_are_told_apart(brain):
    text = re.sub(r"<attributes>.*?</attributes>", "", brain.read_text())
    brain.write_text(re.sub(r"<name>setup \d</name>", "<name>brain</name>", text))
    assert bigdataviewer_inventory(brain).scenes == tuple(f"brain #{number}" for number in range(4))


def test_memory_for_kept_chunks_is_told(tmp_path, channels):
    path = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    voxels = write_imaris(tmp_path / "b.ims", channels[:1], spacing_um_zyx=SPACING)
    assert BigDataViewerVolume(path).kept_bytes == ImarisVolume(voxels).kept_bytes > 0


LOADERS = {
    '<ImageLoader format="bdv.multimg.zarr"><zarr type="relative">b.zarr</zarr><zgroups><zgroup setup="0" timepoint="0"><path>s0</path></zgroup></zgroups>': r"give the OME-Zarr itself: .*b\.zarr/s0",
    '<ImageLoader format="bdv.multimg.zarr"><zarr type="relative">b.zarr</zarr><zgroups><zgroup setup="0" tp="0" path="s1"/></zgroups>': r"give the OME-Zarr itself: .*b\.zarr/s1",
    '<ImageLoader format="spimreconstruction.filemap2">': r"\(loader spimreconstruction\.filemap2\); open it in Fiji's BigStitcher, save it again as HDF5 or N5",
    '<ImageLoader format="bdv.imaris"><imaris type="relative">b.ims</imaris>': r"give the Imaris file itself: .*b\.ims",
    '<ImageLoader class="viewer.hdf5.Hdf5ImageLoader">': "as early versions described them; open it in Fiji's BigDataViewer",
}


@pytest.mark.parametrize("loader", LOADERS)
def test_voxels_in_other_formats(tmp_path, channels, loader):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    text = re.sub(r"<ImageLoader.*?</ImageLoader>", f"{loader}</ImageLoader>", xml.read_text())
    xml.write_text(text)
    for ask in (bigdataviewer_inventory, BigDataViewerVolume):
        with pytest.raises(SelmaError, match=rf"b\.xml: its voxels are neither HDF5 nor N5 .*{LOADERS[loader]}"):
            ask(xml)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box(brain, channels, data):
    volume = BigDataViewerVolume(brain, Choice(scene="1", channel=0, time=1))
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2)))) for length in SHAPE)
    np.testing.assert_array_equal(volume.read(*box), channels[0][box] + 11)


def test_reading_after_pickling(brain, channels):
    volume = BigDataViewerVolume(brain, Choice(scene="0", channel=0, time=0))
    volume.read(slice(2))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(), channels[0])


def test_a_dataset_by_npy2bdv(tmp_path, channels, capsys):
    """An independent writer: two channels, two tiles, two time points, and a tile's place in the calibrated world."""
    npy2bdv = pytest.importorskip("npy2bdv")
    writer = npy2bdv.BdvWriter(
        str(tmp_path / "b.h5"),
        subsamp=((1, 1, 1), (1, 2, 2)),
        blockdim=((4, 8, 8), (4, 8, 8)),
        compression="gzip",
        nchannels=2,
        ntiles=2,
    )
    writer.set_attribute_labels("channel", ("auto", "488"))
    for time in (0, 1):
        for tile in (0, 1):
            for channel in (0, 1):
                writer.append_view(
                    channels[channel] + np.uint16(10 * tile + time),
                    time=time,
                    channel=channel,
                    tile=tile,
                    m_affine=scaling((1, 1, 1), (300 * tile, 0, 15)),
                    voxel_size_xyz=tuple(XYZ),
                    voxel_units="um",
                    calibration=tuple(XYZ / XYZ.min()),
                )
    writer.write_xml()
    writer.close()
    expected = {"scenes": ("tile 0", "tile 1"), "channels": 2, "channel_names": ("auto", "488"), "times": 2}
    assert bigdataviewer_inventory(tmp_path / "b.xml") == Inventory(
        **expected, levels=2, companions=(tmp_path / "b.h5",)
    )
    editor = npy2bdv.BdvEditor(str(tmp_path / "b.h5"), mode="r")
    for level in (0, 1):
        volume = BigDataViewerVolume(tmp_path / "b.h5", Choice(scene="tile 1", channel=1, time=1, level=level))
        np.testing.assert_array_equal(volume.read(), editor.read_view(time=1, channel=1, tile=1, ilevel=level))
        if level == 0:
            np.testing.assert_array_equal(volume.read(), channels[1] + 11)
        factor = np.array((1, 2, 2) if level else (1, 1, 1))
        assert volume.spacing_um_zyx == pytest.approx(np.array(SPACING) * factor, abs=1e-5)
        shift = np.array(SPACING) * (factor - 1) / 2
        assert volume.origin_um_zyx == pytest.approx(np.array((22.5, 0, 450)) + shift, abs=1e-3)
    editor._file_object_h5.close()


@pytest.mark.parametrize("kept", [".h5"], indirect=True)
def test_files_by_their_content(tmp_path, brain, channels, monkeypatch):
    foreign = write_imaris(tmp_path / "foreign.h5", channels[:1], spacing_um_zyx=SPACING)
    (tmp_path / "notes.xml").write_text("<notes/>")
    (tmp_path / "noise.hdf5").write_bytes(bytes(100))
    (tmp_path / "folder.h5").mkdir()
    for name, expected in {
        "brain.h5": True,
        "brain.xml": True,
        "foreign.h5": False,
        "notes.xml": False,
        "noise.hdf5": False,
        "folder.h5": False,
        "absent.h5": False,
        "absent.xml": False,
        "brain.tif": False,
    }.items():
        assert is_bigdataviewer(tmp_path / name) is expected, name
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert is_bigdataviewer(foreign)
    with pytest.raises(SelmaError, match=r"foreign\.h5: .* needs h5py; .*nnunet-selma\[hdf5\]"):
        BigDataViewerVolume(foreign)


def test_files_of_other_programs(tmp_path, channels):
    path = write_imaris(tmp_path / "foreign.h5", channels[:1], spacing_um_zyx=SPACING, levels=9)
    sentence = str(other_hdf5(path))
    assert sentence.startswith(f"{path}: is an HDF5 file of another program, with DataSet/ResolutionLevel 0/")
    assert "Data (12 × 24 × 32 of uint16), " in sentence
    assert sentence.count("Data (") == 5
    assert sentence.endswith("Save the image as TIFF or OME-Zarr and give that")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "with no dataset;" in str(other_hdf5(tmp_path / "empty.h5"))
    (tmp_path / "noise.h5").write_bytes(bytes(100))
    assert "noise.h5: cannot be read" in str(other_hdf5(tmp_path / "noise.h5"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


DAMAGED = {
    ("b.h5", cut): r"b\.h5: cannot be read to its end, the file is cut short",
    ("b.h5", emptied): r"b\.h5: the file is empty; copy it again",
    ("b.xml", cut): r"b\.xml: is damaged, or no XML of BigDataViewer",
    ("b.xml", emptied): r"b\.xml: is damaged, or no XML of BigDataViewer",
}


@pytest.mark.parametrize(("name", "harm"), DAMAGED, ids=lambda value: getattr(value, "__name__", value))
def test_damaged_files(tmp_path, channels, name, harm):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    harm(tmp_path / name)
    for ask in (bigdataviewer_inventory, BigDataViewerVolume):
        with pytest.raises(SelmaError, match=DAMAGED[name, harm]):
            ask(xml)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("b.h5", "c.h5", r"b\.xml: its voxels lie in .*c\.h5, which is missing; copy it there, or correct the path"),
        ("<id>0</id>", "<id>7</id>", r"b\.h5: cannot be read, the file is damaged"),
        ("<affine>1.5", "<affine>nan", r"b\.xml: is damaged, or no XML of BigDataViewer \(a registration is not"),
        ("<affine>1.5", "<affine>", r"b\.xml: is damaged"),
        ("ViewSetups", "Setups", r"b\.xml: cannot be read"),
        ("<last>0", "<last>", r"b\.xml: is damaged"),
    ],
)
def test_xml_files_that_say_nothing_useful(tmp_path, channels, old, new, sentence):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING)
    with pytest.raises(SelmaError, match=sentence):
        BigDataViewerVolume(edit(xml, old, new))


def test_a_damaged_chunk(tmp_path, channels):
    xml = write_bdv(tmp_path / "b.h5", channels[:1], spacing_um_zyx=SPACING, levels=1)
    with h5py.File(tmp_path / "b.h5") as file:
        chunk = file["t00000/s00/0/cells"].id.get_chunk_info(0)
    with (tmp_path / "b.h5").open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(SelmaError, match=r"b\.xml: cannot be read to its end"):
        BigDataViewerVolume(xml).read()
