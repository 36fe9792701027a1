"""Which pages of a TIFF file are its image: written as programs write them, damaged as copies are."""

import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.tiff import has_many_pages
from nnunet_selma.volumes.tiff_pages import tiff_inventory

VOXELS = np.arange(12 * 20 * 30, dtype=np.uint16).reshape(12, 20, 30)
PLAIN = {"metadata": None, "photometric": "minisblack"}


def write_pages(path, pages, **options):
    with tifffile.TiffWriter(path) as tif:
        for page in pages:
            tif.write(page, contiguous=False, **PLAIN, **options)
    return path


def appended(path, **options):
    for number, page in enumerate(VOXELS):
        tifffile.imwrite(path, page, append=number > 0, **options)


def with_thumbnail(path, first):
    thumbnail, pages = VOXELS[5][::4, ::4], list(VOXELS)
    write_pages(path, [thumbnail, *pages] if first else [*pages, thumbnail])


WHOLE = {
    "one by one": lambda path: write_pages(path, VOXELS),
    "one by one, compressed": lambda path: write_pages(path, VOXELS, compression="zlib"),
    "appended": appended,
    "appended, without metadata": lambda path: appended(path, metadata=None),
    "thumbnail first": lambda path: with_thumbnail(path, first=True),
    "thumbnail last": lambda path: with_thumbnail(path, first=False),
    "big-endian": lambda path: tifffile.imwrite(path, VOXELS, byteorder=">", **PLAIN),
    "big-endian ImageJ": lambda path: tifffile.imwrite(
        path, VOXELS, imagej=True, byteorder=">", metadata={"axes": "ZYX"}
    ),
    "BigTIFF": lambda path: tifffile.imwrite(path, VOXELS, bigtiff=True, **PLAIN),
}


@pytest.mark.parametrize("write", WHOLE.values(), ids=WHOLE)
def test_equal_pages_are_one_stack(write, tmp_path):
    write(tmp_path / "brain.tif")
    volume = open_volume(tmp_path / "brain.tif")
    np.testing.assert_array_equal(volume.read(), VOXELS)
    np.testing.assert_array_equal(volume.read(slice(3, 5), slice(2, 9), slice(1, 4)), VOXELS[3:5, 2:9, 1:4])
    assert has_many_pages(tmp_path / "brain.tif")


def test_a_pyramid_below_an_ome_tiff_is_left_out(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(VOXELS, subifds=1, metadata={"axes": "ZYX"})
        tif.write(VOXELS[:, ::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.ome.tif").read(), VOXELS)


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (VOXELS[7][:, :29], r"page 8 is 20 × 29 \(y, x\) of uint16, other pages are 20 × 30 of uint16"),
        (VOXELS[7].astype(np.uint8), r"page 8 is 20 × 30 \(y, x\) of uint8"),
        (VOXELS[7][:10], r"page 8 is 10 × 30"),
    ],
)
def test_a_page_unlike_the_others_is_named(odd, sentence, tmp_path):
    pages = list(VOXELS)
    pages[7] = odd
    with pytest.raises(SelmaError, match=sentence):
        open_volume(write_pages(tmp_path / "brain.tif", pages))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"imagej": True}),
        ("a.ome.tif", {"metadata": {"axes": "ZYX"}}),
        ("a.ome.tif", {"metadata": {"axes": "ZYX"}, "compression": "zlib"}),
        ("a.tif", PLAIN),
        ("a.tif", {}),
    ],
    ids=["ImageJ", "OME", "OME, compressed", "plain", "tifffile"],
)
def test_a_file_that_breaks_off_is_said_to(name, options, share, tmp_path):
    path = tmp_path / name
    tifffile.imwrite(path, VOXELS, **options)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    with pytest.raises(SelmaError, match=r"cut short|damaged"):
        open_volume(path).read()


IMAGE = (
    '<Image ID="Image:{0}" Name="Pos{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYCZT" Type="uint16" SizeX="30" SizeY="20" SizeZ="6" '
    'SizeC="2" SizeT="1" PhysicalSizeX="{1}" PhysicalSizeY="{1}" PhysicalSizeZ="5">{2}</Pixels></Image>'
)


def write_positions(folder, order=(0, 1)):
    """Two positions of a Micro-Manager acquisition, a file each, of 6 slices with 2 channels; each file describes both."""
    names = [f"Pos{number}.ome.tif" for number in range(2)]
    planes = '<TiffData IFD="{0}" FirstZ="{1}" FirstC="{2}" FirstT="0" PlaneCount="1"><UUID FileName="{3}">urn:uuid:{3}</UUID></TiffData>'
    images = "".join(
        IMAGE.format(i, 1.5 + i, "".join(planes.format(k, k // 2, k % 2, names[i]) for k in range(12))) for i in order
    )
    xml = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
    for i in order:
        tifffile.imwrite(folder / names[i], VOXELS + 1000 * i, description=xml.encode(), **PLAIN)
    return [folder / name for name in names]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_gives_the_position_that_it_holds(order, tmp_path):
    for i, path in enumerate(write_positions(tmp_path, order)):
        assert tiff_inventory(path).channels == 2
        with pytest.raises(SelmaError, match="has 2 channels"):
            open_volume(path)
        for channel in range(2):
            volume = open_volume(path, channel=channel)
            np.testing.assert_array_equal(volume.read(), VOXELS[channel::2] + 1000 * i)
            assert volume.spacing_um_zyx == (5.0, 1.5 + i, 1.5 + i)


def test_a_file_with_two_images_is_a_question(tmp_path):
    with tifffile.TiffWriter(tmp_path / "two.ome.tif") as tif:
        for name in ("left", "right"):
            tif.write(VOXELS, metadata={"axes": "ZYX", "Name": name})
    with pytest.raises(
        SelmaError, match=r"holds 2 images: 0 \(left\), 1 \(right\); save one of them as a file of its own"
    ):
        open_volume(tmp_path / "two.ome.tif")


def test_images_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        for number in range(2):
            tif.write(VOXELS + 1000 * number, metadata={"axes": "ZYX", "Name": "brain"})
    assert tiff_inventory(path).scenes == ("brain #0", "brain #1")
    with pytest.raises(SelmaError, match="has no scene brain"):
        open_volume(path, scene="brain")
    for number in range(2):
        volume = open_volume(path, scene=f"brain #{number}")
        np.testing.assert_array_equal(volume.read(), VOXELS + 1000 * number)


ELSEWHERE = '<TiffData IFD="0" PlaneCount="12"><UUID FileName="{0}">urn:uuid:{0}</UUID></TiffData>'
CHANNELS = '<Channel ID="Channel:{0}:0" Name="GFP{0}"/><Channel ID="Channel:{0}:1" Name="cFos{0}"/>'


def write_described(path, stacks, data, uuid=""):
    """Stacks of 6 slices with 2 channels, one behind another, and images of different voxel size in OME-XML, each with its `TiffData`."""
    images = "".join(IMAGE.format(i, 1.5 + i, CHANNELS.format(i) + planes) for i, planes in enumerate(data))
    root = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {uuid}>{images}</OME>'
    description = f'<?xml version="1.0"?>{root}'.encode()
    with tifffile.TiffWriter(path) as tif:
        for number, page in enumerate(np.concatenate(stacks)):
            tif.write(page, contiguous=False, description=description if number == 0 else None, **PLAIN)
    return path


def test_images_without_pages_here_do_not_shift_the_others(tmp_path):
    """The first image has no pages in any file, and the others are numbered without it."""
    data = ["", '<TiffData IFD="0" PlaneCount="12"/>', '<TiffData IFD="12" PlaneCount="12"/>']
    path = write_described(tmp_path / "a.ome.tif", [VOXELS, VOXELS + 1000], data)
    for scene, image in ((0, 1), (1, 2)):
        held = tiff_inventory(path, str(scene))
        assert (held.scenes, held.channel_names) == (("Pos1", "Pos2"), (f"GFP{image}", f"cFos{image}"))
        volume = open_volume(path, scene=str(scene), channel=1)
        np.testing.assert_array_equal(volume.read(), VOXELS[1::2] + 1000 * scene)
        assert volume.spacing_um_zyx == (5.0, 1.5 + image, 1.5 + image)


@pytest.mark.parametrize("uuid", ["", 'UUID="urn:uuid:a.ome.tif"'])
def test_images_of_which_one_lies_elsewhere_are_not_joined(uuid, tmp_path):
    here = '<TiffData IFD="{0}" PlaneCount="12"><UUID FileName="a.ome.tif">urn:uuid:a.ome.tif</UUID></TiffData>'
    data = [here.format(0), ELSEWHERE.format("b.ome.tif"), here.format(12)]
    path = write_described(tmp_path / "a.ome.tif", [VOXELS, VOXELS + 1000], data, uuid)
    for read in (tiff_inventory, lambda path: open_volume(path, channel=0)):
        with pytest.raises(
            SelmaError, match=r"a\.ome\.tif: its OME-XML describes 2 images and does not tell them apart"
        ):
            read(path)


def test_a_renamed_file_asks_for_its_name_where_images_differ(tmp_path):
    data = [ELSEWHERE.format("a.ome.tif"), ELSEWHERE.format("b.ome.tif")]
    path = write_described(tmp_path / "c.ome.tif", [VOXELS], data)
    with pytest.raises(SelmaError, match=r"give the file the name that it had, one of a\.ome\.tif, b\.ome\.tif"):
        open_volume(path, channel=0)
    for name, size in (("a.ome.tif", 1.5), ("b.ome.tif", 2.5)):
        path = path.rename(tmp_path / name)
        assert open_volume(path, channel=0).spacing_um_zyx == (5.0, size, size)
    path = path.rename(tmp_path / "d.ome.tif")
    path.write_bytes(
        path.read_bytes().replace(b'"2.5"', b'"1.5"').replace(b"GFP1", b"GFP0").replace(b"cFos1", b"cFos0")
    )
    volume = open_volume(path, channel=1)
    np.testing.assert_array_equal(volume.read(), VOXELS[1::2])
    assert volume.spacing_um_zyx == (5.0, 1.5, 1.5)


def test_a_slice_with_a_thumbnail_is_a_slice(tmp_path):
    for z, plane in enumerate(VOXELS):
        write_pages(tmp_path / f"Z{z:02d}.tif", [plane, plane[::4, ::4]] if z == 0 else [plane])
    assert not has_many_pages(tmp_path / "Z00.tif")
    np.testing.assert_array_equal(open_volume(tmp_path).read(), VOXELS)
