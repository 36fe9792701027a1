"""Names that say, or may say, that a file is a channel of a volume."""

from pathlib import Path

import pytest

from nnunet_selma.conversion.channel_files import channel_name, siblings, volume_path
from nnunet_selma.errors import SelmaError


@pytest.mark.parametrize(
    ("path", "volume", "channel", "certain"),
    [
        ("/b/mouse1/C00", "/b/mouse1", 0, True),
        ("/b/mouse1/c03", "/b/mouse1", 3, True),
        ("/b/mouse1/C01/brain.tif", "/b/mouse1/brain", 1, True),
        ("/b/C01/mouse1/stack.tif", "/b/mouse1/stack", 1, True),
        ("/b/mouse1/C01/mouse1_C01.ome.tif", "/b/mouse1/mouse1", 1, True),
        ("/b/mouse1_C01.nii.gz", "/b/mouse1", 1, True),
        ("/b/mouse1-ch2.tif", "/b/mouse1", 2, True),
        ("/b/mouse1 Channel 0.tif", "/b/mouse1", 0, True),
        ("/b/mouse1_C01/mouse1_C01.tif", "/b/mouse1_C01/mouse1", 1, True),
        ("/b/C2-mouse1.tif", "/b/mouse1", 2, True),
        ("/b/mouse1_0001.nii.gz", "/b/mouse1", 1, False),
        ("/b/mouse1_C2.tif", "/b/mouse1", 2, False),
        ("/b/mouse1/C2", "/b/mouse1", 2, False),
    ],
)
def test_names_of_channels(path, volume, channel, certain):
    name = channel_name(Path(path))
    assert (name.volume, name.channel, name.certain) == (Path(volume), channel, certain)
    assert volume_path(path) == (volume if certain else path)


@pytest.mark.parametrize(
    "path",
    [
        "/b/mouse1.tif",
        "/b/C57/mouse.tif",
        "/b/mouse_C12.tif",
        "/b/search1.tif",
        "/b/mouse_001.tif",
        "/C00/a/b/mouse.tif",
        "/cohort_C01/mouse.tif",
        "/cohort_ch1/a/mouse.tif",
        "/b/Ex_488",
    ],
)
def test_other_names(path):
    assert channel_name(Path(path)) is None
    assert volume_path(path) == path


def test_siblings_are_in_the_order_of_their_numbers():
    paths = [Path(p) for p in ("/b/m1/C02", "/b/m2/C00", "/b/m1/C00", "/b/m3_0001.tif", "/b/m3_0000.tif", "/b/m4.tif")]
    first, second = siblings(paths)
    assert list(first.files.items()) == [(0, paths[2]), (2, paths[0])]
    assert (first.volume, first.certain) == (Path("/b/m1"), True)
    assert list(second.files) == [0, 1]
    assert (second.volume, second.certain) == (Path("/b/m3"), False)


@pytest.mark.parametrize(
    ("names", "certain"),
    [
        (("C01/brain.tif", "C02/brain.tif"), False),
        (("mouse_C01.tif", "mouse_C02.tif"), False),
        (("mouse/C01", "mouse/C02"), False),
        (("C01/mouse_ch1.tif", "C02/mouse_ch2.tif"), False),
        (("C00/brain.tif", "C02/brain.tif"), True),
        (("mouse_C00.tif", "mouse_C01.tif", "mouse_C02.tif"), True),
        (("mouse_ch1.tif", "mouse_ch2.tif"), True),
        (("mouse_ch01.tif", "mouse_ch02.tif"), True),
        (("C1-mouse.tif", "C2-mouse.tif"), True),
    ],
)
def test_two_digits_without_zero_leave_a_doubt(names, certain):
    (group,) = siblings(Path("/b") / name for name in names)
    assert (len(group.files), group.certain) == (len(names), certain)
    together = {volume_path(f"/b/{name}") for name in names}
    assert together == {str(group.volume)}


@pytest.mark.parametrize("numbers", [range(1, 4), range(12)])
def test_samples_that_are_numbered_are_no_channels(numbers):
    assert not list(siblings(Path(f"/b/mouse_{number:04d}.tif") for number in numbers))


def test_two_files_of_a_channel_are_refused():
    with pytest.raises(SelmaError, match=r"m1_C00\.tif and /b/m1_C00\.nii\.gz are one volume and channel"):
        list(siblings([Path("/b/m1_C00.tif"), Path("/b/m1_C00.nii.gz")]))
