"""Every reader against the array that was written."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import base, bioio, open_volume, stem, to_intensities
from nnunet_selma.volumes.library_errors import errors_as
from nnunet_selma.volumes.tiff import is_stack_of_slices, slice_channels
from tests.conftest import write_image
from tests.volumes.czi_files import write_czi
from tests.volumes.lif_files import write_lif
from tests.volumes.microscope_files import write_bdv, write_imaris
from tests.volumes.nd2_files import write_nd2

SHAPE = (7, 9, 11)


@pytest.fixture
def voxels(rng):
    return rng.integers(0, 65535, SHAPE, dtype=np.uint16, endpoint=True)


def write_slices(folder, voxels, name="s_Z{}.tif", **options):
    folder.mkdir(parents=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / name.format(z), plane, **options)
    return folder


def write_ome_slices(folder, voxels):
    """One slice a file, each of which describes the whole stack, as LaVision's microscopes write them."""
    folder.mkdir(parents=True)
    names = [f"brain_Z{z:04d}.ome.tif" for z in range(len(voxels))]
    blocks = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z:032d}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    z, y, x = voxels.shape
    for name, plane in zip(names, voxels, strict=True):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint16" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
        )
        tifffile.imwrite(folder / name, plane, description=xml.encode(), metadata=None)
    return folder


def write_zarr(path, voxels, *, version=3, five=True):
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    array = voxels[None, None] if five else voxels
    group.create_array("0", data=array, chunks=(*([1, 1] if five else []), 4, 4, 4))
    names = (["t", "c"] if five else []) + ["z", "y", "x"]
    kinds = {"t": "time", "c": "channel"}
    multiscales = [
        {
            "axes": [
                {"name": n, "type": kinds.get(n, "space"), **({"unit": "micrometer"} if n in "zyx" else {})}
                for n in names
            ],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [1.0] * (len(names) - 3) + [6.0, 1.6, 1.5]}
                    ],
                }
            ],
        }
    ]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": multiscales}} if version == 3 else {"multiscales": multiscales}
    )
    return path


WRITERS = {
    "slices": lambda p, v: write_slices(p / "stack", v),
    "slices, compressed": lambda p, v: write_slices(p / "stack", v, compression="zlib"),
    "pages": lambda p, v: _tiff(p / "v.tif", v, compression="zlib", metadata={"axes": "ZYX"}),
    "pages, contiguous": lambda p, v: _tiff(p / "v.tif", v, metadata={"axes": "ZYX"}),
    "pages, no metadata": lambda p, v: _tiff(p / "v.tif", v, metadata=None),
    "ImageJ": lambda p, v: _tiff(p / "v.tif", v, imagej=True, metadata={"axes": "ZYX"}),
    "NIfTI": lambda p, v: write_image(p / "v.nii.gz", v),
    "NIfTI, not compressed": lambda p, v: write_image(p / "v.nii", v),
    "NIfTI, trailing axis": lambda p, v: write_image(p / "v.nii.gz", v[None]),
    "NRRD, trailing axis": lambda p, v: write_image(p / "v.nrrd", v[None]),
    "OME-TIFF slices": lambda p, v: write_ome_slices(p / "stack", v),
    "NRRD": lambda p, v: write_image(p / "v.nrrd", v),
    "MHA": lambda p, v: write_image(p / "v.mha", v),
    "OME-Zarr 0.5": lambda p, v: write_zarr(p / "v.ome.zarr", v),
    "OME-Zarr 0.4": lambda p, v: write_zarr(p / "v.ome.zarr", v, version=2),
    "OME-Zarr, three axes": lambda p, v: write_zarr(p / "v.ome.zarr", v, five=False),
    "Imaris": lambda p, v: write_imaris(p / "v.ims", [v], spacing_um_zyx=(6.0, 1.6, 1.5)),
    "BigDataViewer": lambda p, v: write_bdv(p / "v.h5", [v], spacing_um_zyx=(6.0, 1.6, 1.5)),
    "CZI": lambda p, v: write_czi(p / "v.czi", [v], spacing_um_zyx=(6.0, 1.6, 1.5)),
    "LIF": lambda p, v: write_lif(p / "v.lif", {"v": v}, axes="zyx"),
    "ND2": lambda p, v: write_nd2(p / "v.nd2", v[:, None], axes="zcyx"),
}


def _tiff(path, voxels, **options):
    tifffile.imwrite(path, voxels, **options)
    return path


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_box_is_the_same_box_of_the_array(kind, voxels, tmp_path_factory, data):
    path = WRITERS[kind](tmp_path_factory.mktemp("volume"), voxels)
    volume = open_volume(path)
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint16
    box = []
    for length in SHAPE:
        start = data.draw(st.integers(0, length - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, length))))
    np.testing.assert_array_equal(volume.read(*box), voxels[tuple(box)])


@pytest.mark.parametrize("kind", WRITERS)
def test_the_whole_volume(kind, voxels, tmp_path):
    np.testing.assert_array_equal(open_volume(WRITERS[kind](tmp_path, voxels)).read(), voxels)


def test_a_box_of_no_voxels_is_empty(voxels, tmp_path):
    assert open_volume(WRITERS["NIfTI"](tmp_path, voxels)).read(slice(3, 3)).shape == (0, 9, 11)


@pytest.mark.parametrize(
    ("header", "um"),
    [
        ((1.0, 1.0, 1.0), None),  # the lie of the real headers
        ((0.002, 0.001866, 0.001866), (2.0, 1.866, 1.866)),  # millimetres, as NIfTI means it
        ((6.0, 1.625, 1.625), (6.0, 1.625, 1.625)),  # micrometres in a millimetre field
    ],
)
def test_spacing_in_headers(header, um, voxels, tmp_path):
    volume = open_volume(write_image(tmp_path / "v.nii.gz", voxels, header))
    assert volume.spacing_um_zyx == (None if um is None else pytest.approx(um, rel=1e-4))


def test_spacing_of_ome_zarr_and_tiff(voxels, tmp_path):
    assert open_volume(write_zarr(tmp_path / "a.zarr", voxels)).spacing_um_zyx == (6.0, 1.6, 1.5)
    tifffile.imwrite(
        tmp_path / "b.ome.tif",
        voxels,
        ome=True,
        metadata={
            "axes": "ZYX",
            "PhysicalSizeZ": 6.0,
            "PhysicalSizeY": 1.6,
            "PhysicalSizeX": 1.5,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZUnit": "µm",
        },
    )
    assert open_volume(tmp_path / "b.ome.tif").spacing_um_zyx == (6.0, 1.6, 1.5)
    tifffile.imwrite(
        tmp_path / "c.tif",
        voxels,
        imagej=True,
        resolution=(1 / 1.5, 1 / 1.6),
        metadata={"axes": "ZYX", "spacing": 6.0, "unit": "um"},
    )
    assert open_volume(tmp_path / "c.tif").spacing_um_zyx == pytest.approx((6.0, 1.6, 1.5), rel=1e-4)


def test_channels_of_a_tiff_must_be_chosen(voxels, tmp_path):
    tifffile.imwrite(
        tmp_path / "v.tif", np.stack([voxels, voxels // 2], axis=1), imagej=True, metadata={"axes": "ZCYX"}
    )
    with pytest.raises(SelmaError, match="has 2 channels"):
        open_volume(tmp_path / "v.tif")
    np.testing.assert_array_equal(open_volume(tmp_path / "v.tif", channel=1).read(slice(2, 4)), voxels[2:4] // 2)


def test_slices_are_read_in_the_order_of_their_numbers_and_hidden_files_skipped(voxels, tmp_path):
    tall = np.concatenate([voxels, voxels // 2])  # 14 slices: Z10 sorts before Z2 by alphabet
    folder = write_slices(tmp_path / "stack", tall)
    (folder / "._s_Z3.tif").write_bytes(b"not a tiff")
    np.testing.assert_array_equal(open_volume(folder).read(), tall)


class TestBadSlices:
    """Each names the file; with interpolation each is replaced by the mean of its neighbours and listed."""

    def spoil_missing(self, folder):
        (folder / "s_Z3.tif").unlink()

    def spoil_size(self, folder):
        tifffile.imwrite(folder / "s_Z3.tif", np.zeros((4, 4), np.uint16))

    def spoil_dtype(self, folder):
        tifffile.imwrite(folder / "s_Z3.tif", np.zeros(SHAPE[1:], np.uint8))

    def spoil_colour(self, folder):
        tifffile.imwrite(folder / "s_Z3.tif", np.zeros((*SHAPE[1:], 3), np.uint8), photometric="rgb")

    def spoil_header(self, folder):
        (folder / "s_Z3.tif").write_bytes(b"nothing")

    def spoil_data(self, folder):
        path = folder / "s_Z3.tif"
        path.write_bytes(path.read_bytes()[: -SHAPE[1] * SHAPE[2]])

    SPOILS = ("missing", "size", "dtype", "colour", "header", "data")

    @pytest.mark.parametrize("spoil", SPOILS)
    def test_error_names_the_slice(self, spoil, voxels, tmp_path):
        folder = write_slices(tmp_path / "stack", voxels)
        getattr(self, f"spoil_{spoil}")(folder)
        with pytest.raises(SelmaError, match="number 3" if spoil == "missing" else "s_Z3.tif"):
            open_volume(folder).read()

    @pytest.mark.parametrize("spoil", SPOILS)
    def test_interpolation_is_the_mean_of_the_neighbours(self, spoil, voxels, tmp_path):
        folder = write_slices(tmp_path / "stack", voxels)
        getattr(self, f"spoil_{spoil}")(folder)
        volume = open_volume(folder, on_bad_slice="interpolate")
        read = volume.read()
        np.testing.assert_array_equal(np.delete(read, 3, 0), np.delete(voxels, 3, 0))
        np.testing.assert_array_equal(read[3], np.rint((voxels[2].astype(float) + voxels[4]) / 2).astype(np.uint16))
        assert len(volume.repaired) == 1
        assert "3" in volume.repaired[0]

    @pytest.mark.parametrize("on_bad_slice", ["error", "interpolate"])
    @pytest.mark.parametrize("spoil", ["size", "dtype", "colour", "header"])
    def test_two_in_a_small_stack_are_too_many(self, spoil, on_bad_slice, voxels, tmp_path):
        folder = write_slices(tmp_path / "stack", voxels)
        getattr(self, f"spoil_{spoil}")(folder)
        (folder / "s_Z5.tif").write_bytes((folder / "s_Z3.tif").read_bytes())
        with pytest.raises(SelmaError, match=r"s_Z3.tif: .*; replace all bad slices, 2 of 7$"):
            open_volume(folder, on_bad_slice=on_bad_slice)

    def test_two_damaged_ones_that_are_noticed_in_reading_are_too_many(self, voxels, tmp_path):
        folder = write_slices(tmp_path / "stack", voxels)
        self.spoil_data(folder)
        (folder / "s_Z5.tif").write_bytes((folder / "s_Z3.tif").read_bytes())
        volume = open_volume(folder, on_bad_slice="interpolate")
        with pytest.raises(
            SelmaError, match=r"s_Z5.tif: is the last of 2 damaged slices of 7, too many to interpolate"
        ):
            volume.read()

    @pytest.mark.parametrize("on_bad_slice", ["error", "interpolate"])
    @pytest.mark.parametrize(
        ("lost", "match"),
        [
            ((3, 9), r"2 slice numbers missing, the first after s_Z2.tif \(number 3\); .* too many to interpolate"),
            (range(3, 37), r"the slice numbers jump after 2 \(s_Z2.tif\)"),
        ],
    )
    def test_many_missing_slices_are_never_interpolated(self, lost, match, on_bad_slice, tmp_path):
        folder = write_slices(tmp_path / "stack", np.zeros((40, 4, 4), np.uint8))
        for z in lost:
            (folder / f"s_Z{z}.tif").unlink()
        with pytest.raises(SelmaError, match=match) as error:
            open_volume(folder, on_bad_slice=on_bad_slice)
        assert "--on-bad-slice" not in str(error.value)

    def test_uneven_steps_are_never_interpolated(self, tmp_path):
        folder = write_slices(tmp_path / "stack", np.zeros((9, 4, 4), np.uint8), name="{}")
        for z, position in enumerate((0, 812, 1600, 2450, 3250, 4080, 7300, 8170, 8950)):
            (folder / str(z)).rename(folder / f"{position}ms.tif")
        with pytest.raises(SelmaError, match=r"not in equal steps, and 4080ms.tif and 7300ms.tif are far apart"):
            open_volume(folder, on_bad_slice="interpolate")


COMPOSITES = {
    "ImageJ": {"imagej": True, "metadata": {"axes": "CYX"}},
    "ImageJ, compressed": {"imagej": True, "metadata": {"axes": "CYX"}, "compression": "zlib"},
    "OME": {"ome": True, "metadata": {"axes": "CYX"}},
    "pages": {"metadata": None, "photometric": "minisblack"},
}


class TestSlicesWithChannels:
    """Files of equally few pages are slices, and their pages channels."""

    def write(self, folder, voxels, channels=2, **options):
        folder.mkdir(parents=True)
        for z, plane in enumerate(voxels):
            pages = np.stack([plane // (channel + 1) for channel in range(channels)])
            tifffile.imwrite(folder / f"s_Z{z}.tif", pages, **options)
        return folder

    @pytest.mark.parametrize("options", COMPOSITES.values(), ids=COMPOSITES)
    def test_each_is_read(self, options, voxels, tmp_path):
        folder = self.write(tmp_path / "stack", voxels, channels=3, **options)
        assert is_stack_of_slices(folder)
        assert slice_channels(folder) == 3
        with pytest.raises(SelmaError, match="has 3 channels; save one of them"):
            open_volume(folder)
        with pytest.raises(SelmaError, match="has the channels 0 to 2, there is no channel 3"):
            open_volume(folder, channel=3)
        for channel in range(3):
            volume = open_volume(folder, channel=channel)
            np.testing.assert_array_equal(volume.read(), voxels // (channel + 1))

    @pytest.mark.parametrize("pages", [1, 3])
    def test_a_slice_with_other_channels_is_named(self, pages, voxels, tmp_path):
        folder = self.write(tmp_path / "stack", voxels)
        tifffile.imwrite(folder / "s_Z3.tif", np.stack([voxels[3]] * pages), photometric="minisblack")
        assert is_stack_of_slices(folder)
        with pytest.raises(SelmaError, match=r"s_Z3.tif: is .*, the other slices are 2 pages of 9 × 11 \(y, x\)"):
            open_volume(folder, channel=0)

    def test_pages_that_are_called_slices_are_volumes(self, voxels, tmp_path):
        folder = self.write(tmp_path / "stack", voxels, imagej=True, metadata={"axes": "ZYX"})
        assert not is_stack_of_slices(folder)
        assert slice_channels(folder) == 1
        with pytest.raises(SelmaError, match="holds 2 pages, a folder of slices has one a file"):
            open_volume(folder)

    def test_files_that_are_not_numbered_are_volumes(self, voxels, tmp_path):
        folder = self.write(tmp_path / "stack", voxels[:4])
        for path, name in zip(sorted(folder.iterdir()), ("liver", "brain", "heart", "lung"), strict=True):
            path.rename(folder / f"{name}.tif")
        assert not is_stack_of_slices(folder)

    @pytest.mark.parametrize("odd", [0, 5])
    def test_all_files_tell_slices_from_volumes(self, odd, voxels, tmp_path):
        folder = write_slices(tmp_path / "stack", voxels)
        tifffile.imwrite(folder / f"s_Z{odd}.tif", voxels)
        assert is_stack_of_slices(folder)
        with pytest.raises(SelmaError, match=f"s_Z{odd}.tif: holds 7 pages"):
            open_volume(folder)
        cubes = tmp_path / "cubes"
        cubes.mkdir()
        for number in range(5):
            tifffile.imwrite(cubes / f"c{number}.tif", voxels[0] if number == odd else voxels)
        assert not is_stack_of_slices(cubes)

    @pytest.mark.parametrize("with_thumbnail", [[0], [5], range(8)])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_thumbnail_beside_a_slice_is_no_channel(self, first, with_thumbnail, rng, tmp_path):
        voxels = rng.integers(0, 999, (8, 40, 40), dtype=np.uint16)
        folder = write_slices(tmp_path / "stack", voxels)
        for z in with_thumbnail:
            with tifffile.TiffWriter(folder / f"s_Z{z}.tif") as tif:
                for page in [voxels[z], voxels[z][::4, ::4]][:: -1 if first else 1]:
                    tif.write(page, contiguous=False, metadata=None, photometric="minisblack")
        np.testing.assert_array_equal(open_volume(folder).read(), voxels)


SINGLE = ("slices", "pages", "NIfTI", "NRRD", "MHA")


@pytest.mark.parametrize("kind", SINGLE)
def test_a_channel_or_level_that_is_not_there_is_refused(kind, voxels, tmp_path):
    path = WRITERS[kind](tmp_path, voxels)
    np.testing.assert_array_equal(open_volume(path, channel=0, level=0).read(), voxels)
    for channel in (1, -1):
        with pytest.raises(SelmaError, match=rf"has one channel, there is no channel {channel}"):
            open_volume(path, channel=channel)
    with pytest.raises(SelmaError, match="has 1 resolution level, level 1 is not among them"):
        open_volume(path, level=1)


@pytest.mark.parametrize("address", ["s3://bucket/a.zarr", "gs://b/c.tif", "https://server/a.zarr", "http://server/a"])
def test_addresses_are_not_read(address):
    with pytest.raises(SelmaError, match="addresses are not read; download the data, or mount them"):
        open_volume(address)


def test_the_order_of_slices_is_told_and_may_be_chosen(voxels, tmp_path):
    folder = write_slices(tmp_path / "stack", voxels)
    assert open_volume(folder).order == "ordered by Z#, 0 to 6, step 1"
    for z in range(7):
        (folder / f"s_Z{z}.tif").rename(folder / f"{z}_{9 - z}.tif")
    with pytest.raises(SelmaError, match="would order the slices differently") as refused:
        open_volume(folder)
    assert "--slice-pattern" in refused.value.for_command({"--slice-pattern"})
    volume = open_volume(folder, slice_pattern=r"_(\d)")
    np.testing.assert_array_equal(volume.read(), voxels[::-1])
    assert volume.order == "ordered by the slice pattern, 3 to 9, step 1"


def test_the_order_of_other_volumes_is_none(voxels, tmp_path):
    assert open_volume(WRITERS["NIfTI"](tmp_path, voxels)).order is None


@pytest.mark.parametrize("kind", ["NIfTI", "NIfTI, not compressed", "pages", "pages, contiguous", "NRRD"])
def test_a_file_that_is_cut_short_is_named(kind, rng, tmp_path):
    path = WRITERS[kind](tmp_path, rng.integers(0, 65535, (20, 40, 40), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SelmaError, match=r"v\.\w+.*(cut short|damaged)"):
        open_volume(path).read()


def test_what_is_no_volume(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(b"no image")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    for name, match in (
        ("none", "no such"),
        ("empty", "neither"),
        ("a.txt", "no reader"),
        ("b.nii.gz", "damaged"),
        ("c.tif", "colour"),
    ):
        with pytest.raises(SelmaError, match=match):
            open_volume(tmp_path / name)


def test_four_axes_are_refused(tmp_path, voxels):
    with pytest.raises(SelmaError, match="11 × 9 × 7 × 2"):
        open_volume(write_image(tmp_path / "v.nii.gz", np.stack([voxels, voxels])))


class TestIntensities:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
    def test_whole_numbers_become_uint16(self, dtype):
        converted = to_intensities(np.array([[[0, 1, 120]]], dtype), "x")
        assert converted.dtype == np.uint16
        assert converted.tolist() == [[[0, 1, 120]]]

    def test_the_largest_value_survives(self):
        assert to_intensities(np.array([65535.0]), "x").tolist() == [65535]

    @pytest.mark.parametrize("value", [0.5, -1.0, 70000.0])
    def test_what_uint16_cannot_hold_stays(self, value):
        converted = to_intensities(np.array([value]), "x")
        assert converted.dtype == np.float32
        assert converted[0] == np.float32(value)

    @pytest.mark.parametrize(
        ("values", "match"),
        [([np.nan], "NaN"), ([np.inf], "infinite"), (np.array([-5], np.int16), "saved as signed"), ([1j], "complex")],
    )
    def test_what_is_refused(self, values, match):
        with pytest.raises(SelmaError, match=match):
            to_intensities(np.asarray(values), "x")


def test_damaged_zarr_metadata(voxels, tmp_path):
    path = write_zarr(tmp_path / "v.ome.zarr", voxels)
    (path / "zarr.json").write_text('{"zarr_format": 3, ')
    with pytest.raises(SelmaError, match="metadata cannot be read"):
        open_volume(path)


def test_a_channel_of_an_ome_zarr_can_be_chosen(voxels, tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    path = write_zarr(tmp_path / "v.ome.zarr", voxels)
    group = zarr.open_group(str(path))
    del group["0"]
    group.create_array("0", data=np.stack([voxels, voxels // 2])[None])
    with pytest.raises(SelmaError, match="has 2 channels") as refused:
        open_volume(path)
    assert refused.value.for_command({"--channel"}).endswith("or choose one of 0 to 1 with --channel")
    np.testing.assert_array_equal(open_volume(path, channel=1).read(), voxels // 2)


def test_a_compressed_nifti_is_decompressed_once_for_boxes_in_order(tmp_path, rng, monkeypatch):
    voxels = rng.integers(0, 999, (12, 20, 30), dtype=np.uint16)
    path = write_image(tmp_path / "a.nii.gz", voxels)
    volume = open_volume(path)
    opened, original = [], gzip.GzipFile.__init__

    def counted(self, *arguments, **options):
        opened.append(arguments)
        original(self, *arguments, **options)

    monkeypatch.setattr(gzip.GzipFile, "__init__", counted)
    for z in (0, 4, 8, 2):  # the last lies before
        np.testing.assert_array_equal(volume.read(slice(z, z + 4)), voxels[z : z + 4])
    assert len(opened) == 1


def test_what_itk_cannot_read_in_part_is_read_once(tmp_path, rng, monkeypatch):
    voxels = rng.integers(0, 999, (12, 20, 30), dtype=np.uint16)
    image = sitk.GetImageFromArray(voxels)
    for name, compressed, whole in (("a.nrrd", False, True), ("a.mha", True, True), ("b.mha", False, False)):
        sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
        volume = open_volume(tmp_path / name)
        assert volume.read_whole == whole
        np.testing.assert_array_equal(volume.read(slice(2, 5), slice(3, 9)), voxels[2:5, 3:9])
        if whole:
            with monkeypatch.context() as patch:
                patch.setattr(type(volume), "_reader", lambda _: 1 / 0)
                np.testing.assert_array_equal(volume.read(slice(7, 12)), voxels[7:12])


def test_a_file_that_is_read_whole_must_fit_into_the_memory(tmp_path, rng, monkeypatch):
    voxels = rng.integers(0, 999, (12, 20, 30), dtype=np.uint16)
    image = sitk.GetImageFromArray(voxels)
    for name in ("a.nrrd", "b.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
    monkeypatch.setattr(base, "usable_memory", lambda: 2 * voxels.nbytes - 1)
    volume = open_volume(tmp_path / "a.nrrd")
    assert volume.read(slice(3, 3)).shape == (0, 20, 30)
    with pytest.raises(SelmaError, match=r"a\.nrrd: files of this kind cannot be read in part, .* save it as OME-Zarr"):
        volume.read(slice(3, 4))
    np.testing.assert_array_equal(open_volume(tmp_path / "b.mha").read(slice(3, 4)), voxels[3:4])
    monkeypatch.setattr(base, "usable_memory", lambda: 2 * voxels.nbytes)
    box = volume.read(slice(3, 4))
    box[...] = 0
    np.testing.assert_array_equal(volume.read(slice(3, 4)), voxels[3:4])
    assert len(pickle.dumps(volume)) < voxels.nbytes


def test_want_of_memory_is_no_damage(tmp_path):
    with pytest.raises(MemoryError), errors_as(base.damaged_file(tmp_path)):
        raise MemoryError
    with pytest.raises(SelmaError, match="damaged"), errors_as(base.damaged_file(tmp_path)):
        raise RuntimeError


ENDINGS = (
    *(".tif", ".tiff", ".ome.tif", ".ome.tiff", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".ims", ".xml"),
    *(".h5", ".hdf5", ".n5", ".czi", ".lif", ".nd2", ".zarr", ".ome.zarr", ".zarr.zip", ".ome.zarr.zip", ".ozx"),
    *bioio._FORMATS,
)


@pytest.mark.parametrize("name", ["brain", "Brain_C1", "brain.c1", "0.5um.s2"])
def test_a_name_loses_its_ending_in_any_case(name):
    for ending in ENDINGS:
        for written in (ending, ending.upper(), ending.title()):
            assert stem(Path(name + written)) == name
    assert stem(Path("brain.c1")) == "brain.c1"


@pytest.mark.parametrize("ending", [".zarr", ".ZARR", ".n5", ".N5"])
def test_of_folders_only_stores_lose_an_ending(ending, tmp_path):
    for name, expected in ((f"brain{ending}", "brain"), ("brain.left", "brain.left")):
        (tmp_path / name).mkdir()
        assert stem(tmp_path / name) == expected
