"""OME-Zarr as other programs lay it out, against the array that was written; zarr formats 2 and 3."""

import os
import zipfile

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import is_volume, open_volume, stem

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")

SHAPE = (7, 9, 11)
SPACING = {"z": 6.0, "y": 1.6, "x": 1.5}
CHUNKS = {"z": 2, "y": 3, "x": 4}
KINDS = {"t": "time", "c": "channel"}


@pytest.fixture
def voxels(rng):
    return rng.integers(0, 65535, SHAPE, dtype=np.uint16, endpoint=True)


@pytest.fixture(params=[2, 3])
def version(request):
    return request.param


def put(group, metadata):
    """Write OME-Zarr's metadata of a group."""
    group.attrs.update({"ome": {"version": "0.5", **metadata}} if group.metadata.zarr_format == 3 else metadata)


def write(path, voxels, version, axes="zyx", overall=1.0):
    """Write an image (z, y, x) with its axes in this order; further axes have the length 1."""
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    spare = [name for name in axes if name not in "zyx"]
    data = voxels[(None,) * len(spare)].transpose([[*spare, *"zyx"].index(name) for name in axes])
    group.create_array("0", data=data, chunks=tuple(CHUNKS.get(name, 1) for name in axes))
    scale = [SPACING.get(name, 1.0) for name in axes]
    multiscale = {
        "axes": [
            {"name": n, "type": KINDS.get(n, "space"), **({"unit": "micrometer"} if n in SPACING else {})} for n in axes
        ],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        "coordinateTransformations": [{"type": "scale", "scale": [overall] * len(axes)}],
    }
    put(group, {"multiscales": [multiscale]})
    return path


def zipped(path, folder=""):
    """The same store in a zip file, within a folder where one is named."""
    target = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, os.path.join(folder, file.relative_to(path)))
    return target


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "czyx", "zcyx", "xyzc", "tczyx", "xyczt"])
def test_axes_are_read_by_name(axes, version, voxels, tmp_path):
    volume = open_volume(write(tmp_path / "v.ome.zarr", voxels, version, axes))
    assert volume.shape == SHAPE
    assert volume.spacing_um_zyx == (6.0, 1.6, 1.5)
    assert volume.chunk_zyx == (2, 3, 4)
    np.testing.assert_array_equal(volume.read(), voxels)
    box = (slice(2, 5), slice(3, 4), slice(1, 9))
    np.testing.assert_array_equal(volume.read(*box), voxels[box])


def test_both_scales_count(version, voxels, tmp_path):
    volume = open_volume(write(tmp_path / "v.ome.zarr", voxels, version, overall=0.5))
    assert volume.spacing_um_zyx == (3.0, 0.8, 0.75)


@pytest.mark.parametrize("axes", ["zcyx", "xyzc"])
def test_a_channel_is_chosen_wherever_its_axis_stands(axes, version, voxels, tmp_path):
    path = write(tmp_path / "v.ome.zarr", voxels, version, axes)
    group, axis = zarr.open_group(str(path)), axes.index("c")
    both = np.concatenate([group["0"][:], group["0"][:] // 2], axis=axis)
    del group["0"]
    group.create_array("0", data=both)
    np.testing.assert_array_equal(open_volume(path, channel=1).read(), voxels // 2)
    with pytest.raises(SelmaError, match="has 2 channels; save one of them"):
        open_volume(path)
    for channel in (2, -1):
        with pytest.raises(SelmaError, match=rf"has the channels 0 to 1, there is no channel {channel}"):
            open_volume(path, channel=channel)


def test_an_image_of_one_channel_has_no_second(version, voxels, tmp_path):
    path = write(tmp_path / "v.ome.zarr", voxels, version)
    np.testing.assert_array_equal(open_volume(path, channel=0).read(), voxels)
    with pytest.raises(SelmaError, match=r"has one channel, there is no channel 1"):
        open_volume(path, channel=1)


def test_several_time_points_are_refused(version, voxels, tmp_path):
    path = write(tmp_path / "v.ome.zarr", voxels, version, "zyxt")
    group = zarr.open_group(str(path))
    del group["0"]
    group.create_array("0", data=np.stack([voxels, voxels], axis=-1))
    with pytest.raises(SelmaError, match="has 2 time points; save one of them"):
        open_volume(path)


@pytest.mark.parametrize("axes", ["yx", "zyy", "zya"])
def test_axes_without_z_y_and_x_are_refused(axes, version, voxels, tmp_path):
    path = tmp_path / "v.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=voxels if len(axes) == 3 else voxels[0])
    put(group, {"multiscales": [{"axes": [{"name": name} for name in axes], "datasets": [{"path": "0"}]}]})
    with pytest.raises(SelmaError, match=f"has {len(axes)} axes, named {', '.join(axes)}; z, y and x are needed"):
        open_volume(path)


HINTS = {
    "yx": r"single plane, .* a folder of TIFF slices is read; otherwise give the volume itself$",
    "cyx": r"two-dimensional, 7 along c\. If these are the slices of a volume, name their axis z",
    "tcyx": r"two-dimensional, 7 along c\. If",
    "yxc": r"two-dimensional, 11 along c\. If",
}


@pytest.mark.parametrize(("axes", "hint"), HINTS.items())
def test_a_two_dimensional_image_gets_a_hint(axes, hint, version, voxels, tmp_path):
    path = tmp_path / "v.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data={2: voxels[0], 3: voxels, 4: voxels[None]}[len(axes)])
    put(group, {"multiscales": [{"axes": [{"name": name} for name in axes], "datasets": [{"path": "0"}]}]})
    with pytest.raises(SelmaError, match=f"v.ome.zarr: has {len(axes)} axes, .* {hint}"):
        open_volume(path)


def test_a_bare_plane_gets_the_hint(voxels, tmp_path):
    zarr.create_array(tmp_path / "v.zarr", data=voxels[0])
    with pytest.raises(SelmaError, match="the image is a single plane"):
        open_volume(tmp_path / "v.zarr")


def test_axes_of_a_bare_array(voxels, tmp_path):
    zarr.create_array(tmp_path / "named.zarr", data=voxels.T, dimension_names=["x", "y", "z"])
    zarr.create_array(tmp_path / "plain.zarr", data=voxels[None], zarr_format=2)
    for name in ("named", "plain"):
        np.testing.assert_array_equal(open_volume(tmp_path / f"{name}.zarr").read(), voxels)


class TestBioformats2raw:
    def root(self, path, voxels, version, series, lists):
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        put(group, {"bioformats2raw.layout": 3})
        for name in series:
            write(path / name, voxels + int(name), version, "tczyx")
        ome = group.create_group("OME")
        if lists:
            put(ome, {"series": series})
        (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
        return path

    @pytest.mark.parametrize("lists", [True, False])
    def test_the_only_series_is_the_image(self, lists, version, voxels, tmp_path):
        path = self.root(tmp_path / "v.ome.zarr", voxels, version, ["0"], lists)
        assert is_volume(path)
        volume = open_volume(path)
        assert volume.spacing_um_zyx == (6.0, 1.6, 1.5)
        np.testing.assert_array_equal(volume.read(), voxels)
        np.testing.assert_array_equal(open_volume(zipped(path)).read(), voxels)

    @pytest.mark.parametrize("lists", [True, False])
    def test_several_series_are_named(self, lists, version, voxels, tmp_path):
        path = self.root(tmp_path / "v.ome.zarr", voxels, version, ["0", "1", "2"], lists)
        with pytest.raises(
            SelmaError, match=r"is a file of 3 images \(0, 1, 2\), not one; give one of them, as .*v.ome.zarr/0$"
        ):
            open_volume(path)
        np.testing.assert_array_equal(open_volume(path / "1").read(), voxels + 1)
        with pytest.raises(SelmaError, match="not one; unpack it and give one of them"):
            open_volume(zipped(path))

    def test_a_root_without_series(self, version, voxels, tmp_path):
        with pytest.raises(SelmaError, match="is a file of 0 images"):
            open_volume(self.root(tmp_path / "v.ome.zarr", voxels, version, [], lists=False))


def test_plates_and_wells_are_named(version, tmp_path):
    plate = zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=version)
    put(plate, {"bioformats2raw.layout": 3, "plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}})
    put(plate.require_group("A/1"), {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    with pytest.raises(
        SelmaError,
        match=r"p.zarr: is a plate of 2 images \(A/1/0, A/2/0\), not one; give one of them, as .*p.zarr/A/1/0$",
    ):
        open_volume(tmp_path / "p.zarr")
    with pytest.raises(SelmaError, match=r"1: is a well of 2 images \(0, 1\), not one; give one of them, as .*A/1/0$"):
        open_volume(tmp_path / "p.zarr/A/1")


def test_the_groups_of_a_group_without_image_are_named(version, voxels, tmp_path):
    zarr.open_group(str(tmp_path / "v.zarr"), mode="w", zarr_format=version)
    for name in ("left", "right"):
        write(tmp_path / "v.zarr" / name, voxels, version)
    with pytest.raises(SelmaError, match="without OME-Zarr's multiscales, with left, right in it; give the image"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize("folder", ["", "brain.ome.zarr"])
def test_a_zip_file_is_read_as_its_folder(folder, version, voxels, tmp_path):
    path = write(tmp_path / "brain.ome.zarr", voxels, version, "cxyz")
    archive = zipped(path, folder)
    assert stem(archive) == stem(path) == "brain"
    assert is_volume(archive)
    volume = open_volume(archive)
    assert volume.spacing_um_zyx == (6.0, 1.6, 1.5)
    np.testing.assert_array_equal(volume.read(), voxels)
    assert volume.stored_files().all()
    archive.rename(tmp_path / "brain.ozx")
    np.testing.assert_array_equal(open_volume(tmp_path / "brain.ozx", level=0).read(), voxels)
    with pytest.raises(SelmaError, match="level 1 is not among them"):
        open_volume(tmp_path / "brain.ozx", level=1)


def test_a_damaged_or_empty_zip_file_is_named(tmp_path):
    (tmp_path / "cut.zarr.zip").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "empty.zarr.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for name in ("cut", "empty"):
        with pytest.raises(SelmaError, match=f"{name}.zarr.zip: the OME-Zarr's metadata cannot be read"):
            open_volume(tmp_path / f"{name}.zarr.zip")


CODECS = {
    "zlib": (2, lambda: numcodecs().Zlib()),
    "gzip": (2, lambda: numcodecs().GZip()),
    "bz2": (2, lambda: numcodecs().BZ2()),
    "lzma": (2, lambda: numcodecs().LZMA()),
    "lz4": (2, lambda: numcodecs().LZ4()),
    "zstd": (2, lambda: numcodecs().Zstd()),
    "blosc": (2, lambda: numcodecs().Blosc()),
    "gzip, 3": (3, lambda: zarr.codecs.GzipCodec()),
    "zstd, 3": (3, lambda: zarr.codecs.ZstdCodec()),
    "blosc, 3": (3, lambda: zarr.codecs.BloscCodec()),
}


def numcodecs():
    return pytest.importorskip("numcodecs")


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * len(data)])
@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_chunk_is_named_whatever_its_codec(codec, harm, voxels, tmp_path):
    version, compressor = CODECS[codec]
    path = tmp_path / "v.ome.zarr"
    zarr.create_array(str(path), data=voxels, chunks=SHAPE, compressors=compressor(), zarr_format=version)
    np.testing.assert_array_equal(open_volume(path).read(), voxels)
    chunk = path / ("0.0.0" if version == 2 else "c/0/0/0")
    chunk.write_bytes(harm(chunk.read_bytes()))
    with pytest.raises(SelmaError, match=r"v\.ome\.zarr: a chunk cannot be read .*copy the OME-Zarr again"):
        open_volume(path).read()


@pytest.mark.parametrize("sharded", [False, True])
def test_stored_files_are_counted_on_the_grid(sharded, version, voxels, tmp_path):
    if sharded and version == 2:
        pytest.skip("zarr 2 has no shards")
    full = np.ones((2, 8, 8, 8), np.uint16)
    full[1, :, :, 4:] = 0  # channel 1: the right half is empty
    path = tmp_path / "v.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    shards = {"shards": (1, 4, 4, 4)} if sharded else {}
    chunks = (1, 2, 2, 2) if sharded else (1, 4, 4, 4)
    group.create_array("0", data=full.transpose(0, 3, 2, 1), chunks=chunks, **shards)
    put(group, {"multiscales": [{"axes": [{"name": name} for name in "cxyz"], "datasets": [{"path": "0"}]}]})
    assert open_volume(path, channel=0).stored_files().all()
    np.testing.assert_array_equal(open_volume(path, channel=1).stored_files(), np.tile([True, False], (2, 2, 1)))
    np.testing.assert_array_equal(
        open_volume(zipped(path), channel=1).stored_files(), np.tile([True, False], (2, 2, 1))
    )


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ((6.0, 1.5, 1.5), (12, 3, 3)),
        ((0.006, 0.0015, 0.0015), (12, 3, 3)),
        ((0.06, 0.02, 0.02), (120, 40, 40)),  # the coarser level would pass for µm
        ((1.0, 1.0, 1.0), None),
    ],
)
def test_without_units_the_numbers_of_the_finest_level_decide(scale, expected, version, voxels, tmp_path):
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="w", zarr_format=version)
    datasets = []
    for level in (0, 1):
        group.create_array(str(level), data=voxels[:: 2**level, :: 2**level, :: 2**level])
        sizes = [edge * 2**level for edge in scale]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": sizes}]})
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    put(group, {"multiscales": [{"axes": axes, "datasets": datasets}]})
    volume = open_volume(tmp_path / "a.ome.zarr", level=1)
    assert volume.spacing_um_zyx == (expected and pytest.approx(expected))
    assert (volume.spacing_guess is None) == (expected is None)


def test_places_of_levels(version, tmp_path):
    """Transforms of the dataset, then of the multiscale image, each in the order of the file; z is 2 (3 i + 10) + 5 µm at level 1."""
    group = zarr.open_group(str(tmp_path / "v"), mode="w", zarr_format=version)
    for level in range(3):
        array = group.create_array(str(level), shape=(8 >> level,) * 3, dtype="u1")
        array[...] = 1
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": [1.5, 1.0, 1.0]}
    coarse = [{"type": "scale", "scale": [3.0, 2.0, 2.0]}, {"type": "translation", "translation": [10.0, 0.5, 0.5]}]
    datasets = [
        {"path": "0", "coordinateTransformations": [scale]},
        {"path": "1", "coordinateTransformations": coarse},
        {"path": "2", "coordinateTransformations": [{"type": "scale", "scale": [6.0, 4.0, 4.0]}]},
    ]
    whole = [{"type": "scale", "scale": [2.0] * 3}, {"type": "translation", "translation": [5.0, 0.0, -1.0]}]
    put(group, {"multiscales": [{"axes": axes, "datasets": datasets, "coordinateTransformations": whole}]})
    assert [open_volume(tmp_path / "v", level=level).origin_um_zyx for level in range(3)] == [
        (5.0, 0.0, -1.0),
        (25.0, 1.0, 0.0),
        (5.0, 0.0, -1.0),
    ]
    put(group, {"multiscales": [{"axes": axes, "datasets": datasets}]})
    volumes = [open_volume(tmp_path / "v", level=level) for level in range(3)]
    assert [volume.origin_um_zyx for volume in volumes] == [None, (10.0, 0.5, 0.5), None]
