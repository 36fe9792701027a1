"""Names that a person gave, apart from those that programs make up, in every format that the project parses itself."""

import re

import numpy as np
import pytest
import tifffile

from nnunet_selma.volumes import inventory
from nnunet_selma.volumes.stated_names import distinct_names, stated_names
from tests.volumes.microscope_files import write_bdv, write_imaris
from tests.volumes.test_ome_zarr import put

SPACING = (6.0, 1.6, 1.5)


@pytest.mark.parametrize(
    "names", [("488", "561"), ("GFP", "cFos"), ("Channel 488", "Channel 561"), ("Ch405", "488 nm"), ("C3",)]
)
def test_names_and_wavelengths_are_stated(names):
    assert stated_names(names) == names


@pytest.mark.parametrize(
    "names",
    [
        ("Channel 0", "Channel 1"),
        ("Channel 1", "Channel 2"),
        ("Channel:0:0", "Channel:0:1"),
        ("Channel:3:0", "Channel:3:1"),
        ("C1", "C2"),
        ("ch00", "ch01"),
        ("0", "1"),
        ("1",),
        ("Image:0",),
        ("GFP", ""),
        ("GFP", None),
        ("GFP", "channel 2"),
        ("(name not specified)", "488"),
    ],
)
def test_names_that_are_missing_or_count_are_none(names):
    assert stated_names(names) == ()


def test_numbers_in_the_file_count():
    assert stated_names(["Channel 3", "Channel 4"], [2, 3]) == ()
    assert stated_names(["Channel 3", "Channel 4"]) == ("Channel 3", "Channel 4")


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a"), ("a", "b", "a"), ("a", "a", "a #1")])
def test_scenes_have_names_of_their_own(names):
    distinct = distinct_names(names)
    assert len(set(distinct)) == len(names)
    assert all(name.startswith(stated) for name, stated in zip(distinct, names, strict=True))


def imaris(folder, channels, names):
    return write_imaris(folder / "a.ims", channels, spacing_um_zyx=SPACING, names=names, levels=1)


def bigdataviewer(folder, channels, names):
    return write_bdv(folder / "a.h5", channels, spacing_um_zyx=SPACING, names=names, levels=1)


def ome_tiff(folder, channels, names):
    metadata = {"axes": "CZYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(folder / "a.ome.tif", np.stack(channels), metadata=metadata, photometric="minisblack")
    return folder / "a.ome.tif"


def ome_zarr(folder, channels, names):
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    group = zarr.open_group(str(folder / "a.ome.zarr"), mode="w", zarr_format=3)
    group.create_array("0", data=np.stack(channels))
    multiscale = {"axes": [{"name": name} for name in "czyx"], "datasets": [{"path": "0"}]}
    put(group, {"multiscales": [multiscale], "omero": {"channels": [{"label": name} for name in names]}})
    return folder / "a.ome.zarr"


@pytest.mark.parametrize("write", [imaris, bigdataviewer, ome_tiff, ome_zarr])
@pytest.mark.parametrize(
    ("names", "stated"),
    [
        (("488", "561"), ("488", "561")),
        (("Channel 1", "Channel 2"), ()),
        (("(name not specified)", "(name not specified)"), ()),
    ],
)
def test_every_format_has_the_same_rule(write, names, stated, rng, tmp_path):
    if write in (imaris, bigdataviewer):
        pytest.importorskip("h5py")
    channels = [rng.integers(0, 60000, (3, 8, 9), dtype=np.uint16) for _ in names]
    held = inventory(write(tmp_path, channels, names))
    assert (held.channels, held.channel_names) == (2, stated)


def ome_tiff_that_lists_one(folder, channels, names):
    path = ome_tiff(folder, channels, [*names, "cFos"])
    xml, count = re.subn(r"<Channel [^>]*cFos[^>]*>.*?</Channel>", "", tifffile.tiffcomment(path))
    assert count == 1
    tifffile.tiffcomment(path, xml.encode())
    return path


@pytest.mark.parametrize("write", [ome_tiff_that_lists_one, ome_zarr])
def test_fewer_names_than_channels_are_none(write, rng, tmp_path):
    channels = [rng.integers(0, 60000, (3, 8, 9), dtype=np.uint16) for _ in range(2)]
    held = inventory(write(tmp_path, channels, ("GFP",)))
    assert (held.channels, held.channel_names) == (2, ())
