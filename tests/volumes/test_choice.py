"""The choice of one image of a file that holds several, in TIFF and OME-Zarr, and what the headers say there is."""

import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import Inventory, inventory, open_volume
from nnunet_selma.volumes.choice import chosen_scene, chosen_time
from nnunet_selma.volumes.segmented import image_at, levels
from tests.volumes.test_volumes import write_slices

SHAPE = (5, 6, 7)


@pytest.fixture
def images(rng):
    """Scene, time point, channel, z, y, x."""
    return rng.integers(0, 65535, (2, 3, 2, *SHAPE), dtype=np.uint16)


def write_tiff(path, images):
    """A scene for each image, named left and right, with channels GFP and cFos."""
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, image, size in zip(("left", "right"), images, (2.0, 3.0), strict=False):
            metadata = {
                "axes": "TCZYX",
                "Name": name,
                "Channel": {"Name": ["GFP", "cFos"]},
                **{f"PhysicalSize{axis}": size for axis in "XYZ"},
            }
            tif.write(image, metadata=metadata)
    return path


def write_zarr(path, images):
    """A root of bioformats2raw with a series for each image, in two levels."""
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    root.create_group("OME").attrs["ome"] = {"version": "0.5", "series": [str(i) for i in range(len(images))]}
    for number, (image, size) in enumerate(zip(images, (2.0, 3.0), strict=False)):
        group = root.create_group(str(number))
        for level, array in enumerate((image, image[..., ::2, ::2, ::2])):
            group.create_array(str(level), data=array)
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, *[size * 2**level] * 3]}],
            }
            for level in range(2)
        ]
        axes = [{"name": n, **({"unit": "micrometer"} if n in "zyx" else {})} for n in "tczyx"]
        group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [{"axes": axes, "datasets": datasets}],
            "omero": {"channels": [{"label": "GFP"}, {"label": "cFos"}]},
        }
    return path


FORMATS = {
    "OME-TIFF": (lambda folder, images: write_tiff(folder / "v.ome.tif", images), ("left", "right"), 1),
    "OME-Zarr": (lambda folder, images: write_zarr(folder / "v.ome.zarr", images), ("0", "1"), 2),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_scene_channel_and_time_point_is_read(kind, images, tmp_path):
    write, names, count = FORMATS[kind]
    path = write(tmp_path, images)
    for scene, name in enumerate(names):
        expected = Inventory(scenes=names, channels=2, channel_names=("GFP", "cFos"), times=3, levels=count)
        assert inventory(path, name) == expected
        for time, channel in np.ndindex(3, 2):
            for chosen in (name, str(scene)):
                volume = open_volume(path, scene=chosen, channel=channel, time=time)
                np.testing.assert_array_equal(volume.read(), images[scene, time, channel])
                assert volume.spacing_um_zyx == (2.0 + scene,) * 3
    assert inventory(path).scenes == names


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"channel": 0, "time": 0}, r"2 images"),
        ({"scene": "0", "time": 0}, r"has 2 channels"),
        ({"scene": "0", "channel": 0}, r"has 3 time points; save one of them"),
        ({"scene": "0", "channel": 0, "time": 3}, r"has the time points 0 to 2, there is no time point 3"),
        ({"scene": "2", "channel": 0, "time": 0}, r"has no scene 2; it holds "),
        ({"scene": "0", "channel": 0, "time": 0, "level": 2}, r"level 2 is not among them"),
    ],
)
def test_a_choice_that_is_missing_or_wrong_ends_in_a_sentence(kind, chosen, sentence, images, tmp_path):
    path = FORMATS[kind][0](tmp_path, images)
    with pytest.raises(SelmaError, match=sentence) as refused:
        open_volume(path, **chosen)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_without_several_nothing_needs_to_be_chosen(kind, images, tmp_path):
    path = FORMATS[kind][0](tmp_path, images[:1, :1])
    assert inventory(path).scenes == ()
    assert inventory(path).times == 1
    np.testing.assert_array_equal(open_volume(path, channel=1).read(), images[0, 0, 1])
    np.testing.assert_array_equal(open_volume(path, scene="0", channel=1, time=0).read(), images[0, 0, 1])
    for wrong in ({"scene": "1"}, {"time": 1}):
        with pytest.raises(SelmaError, match=r"there is no time point 1|has no scene 1"):
            open_volume(path, channel=0, **wrong)


def test_slices_saved_as_time_points_stay_slices(images, tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", images[0, :, 0, 0], imagej=True, metadata={"axes": "TYX"})
    assert inventory(tmp_path / "t.tif") == Inventory()
    np.testing.assert_array_equal(open_volume(tmp_path / "t.tif").read(), images[0, :, 0, 0])


def test_a_folder_of_slices_has_a_single_scene_and_time_point(images, tmp_path):
    folder = write_slices(tmp_path / "stack", images[0, 0, 0])
    assert inventory(folder) == Inventory()
    for wrong in ({"scene": "left"}, {"time": 1}, {"level": 1}):
        with pytest.raises(SelmaError, match=str(folder)):
            open_volume(folder, **wrong)


def test_all_channels_and_levels_of_a_scene_are_opened(images, tmp_path):
    path = write_zarr(tmp_path / "v.ome.zarr", images)
    assert [level.shape for level in levels(path, 1, scene="1", time=2)] == [SHAPE, (3, 3, 4)]
    opened = image_at(path, scene="1", time=2)
    assert opened.channel_names == ("GFP", "cFos")
    for channel in range(2):
        np.testing.assert_array_equal(opened.channels[channel][0].read(), images[1, 2, channel])


def test_a_name_counts_before_a_number(tmp_path):
    assert chosen_scene(tmp_path, "1", ("1", "0")) == 0
    assert chosen_scene(tmp_path, "0", ("1", "0")) == 1
    assert chosen_scene(tmp_path, "0", ("a", "b")) == 0
    assert chosen_time(tmp_path, 2, 3) == 2
