import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from matplotlib.image import imread

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures import viewing
from nnunet_selma.pictures.viewing import LazyArray, layers
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.segmented import image_at, segmentation_at
from tests.conftest import write_image
from tests.volumes.microscope_files import write_imaris

SHAPE, SPACING = (6, 32, 40), (6.0, 1.5, 1.5)


def run(*arguments):
    """As the command line does; returns the exit code."""
    chosen = cli.command_parser().parse_args([str(argument) for argument in arguments])
    return chosen.run(chosen)


def write_levels(group, levels, *, channels=0, version="0.5", **more):
    """An OME-Zarr image of these levels, halved along y and x each, in a zarr group."""
    names = ["c", "z", "y", "x"][0 if channels else 1 :]
    datasets = []
    for number, voxels in enumerate(levels):
        if channels:
            voxels = np.stack([voxels + channel for channel in range(channels)])
        group.create_array(str(number), data=voxels, chunks=(*[1] * bool(channels), 4, 16, 16))
        scale = [1.0] * bool(channels) + [SPACING[0], *(s * 2**number for s in SPACING[1:])]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [
        {"name": n, "type": "channel"} if n == "c" else {"name": n, "type": "space", "unit": "micrometer"}
        for n in names
    ]
    content = {"multiscales": [{"axes": axes, "datasets": datasets}], **more}
    group.attrs.update({"ome": {"version": "0.5", **content}} if version == "0.5" else content)


def write_brain(path, *, raw=True, names=("segmentation",), channels=0, version="0.5"):
    """An OME-Zarr as predict-volume writes it; class 2 is called blood vessel."""
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    rng = np.random.default_rng(0)
    root = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    image = rng.integers(100, 4000, SHAPE, dtype=np.uint16)
    if raw:
        write_levels(root, [image, image[:, ::2, ::2]], channels=channels, version=version)
    parent = root.create_group("labels")
    parent.attrs.update({"ome": {"labels": list(names)}} if version == "0.5" else {"labels": list(names)})
    labels = (rng.random(SHAPE) < 0.02).astype(np.uint8) * rng.integers(1, 3, SHAPE, dtype=np.uint8)
    for name in names:
        properties = [{"label-value": 2, "name": "blood vessel"}]
        write_levels(
            parent.create_group(name),
            [labels, labels[:, ::2, ::2]],
            version=version,
            **{"image-label": {"properties": properties}},
        )
    return image, labels


@pytest.fixture
def brain(tmp_path):
    write_brain(tmp_path / "brain.ome.zarr")
    return tmp_path / "brain.ome.zarr"


@pytest.fixture
def pair(tmp_path, rng):
    """Image and segmentation as NIfTI, without voxel size."""
    image = write_image(tmp_path / "image.nii.gz", rng.integers(0, 999, SHAPE, dtype=np.uint16))
    labels = write_image(tmp_path / "labels.nii.gz", (rng.random(SHAPE) < 0.02).astype(np.uint8))
    return image, labels


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_an_ome_zarr_knows_its_image_its_labels_and_their_names(tmp_path, version):
    image, labels = write_brain(tmp_path / "brain.ome.zarr", version=version, channels=2)
    for path in (tmp_path / "brain.ome.zarr", tmp_path / "brain.ome.zarr/labels/segmentation"):
        found = segmentation_at(path)
        assert found.classes == {2: "blood vessel"}
        assert [len(found.labels), len(found.channels), *map(len, found.channels)] == [2, 2, 2, 2]
        np.testing.assert_array_equal(found.labels[0].read(), labels)
        np.testing.assert_array_equal(found.channels[1][1].read(), image[:, ::2, ::2] + 1)
        assert found.channels[0][1].spacing_um_zyx == (6.0, 3.0, 3.0)
    assert found.name == "brain.ome.zarr, segmentation"


def test_overview_draws_a_prediction(brain, tmp_path, capsys):
    assert run("overview", brain, "-o", tmp_path / "a.png") == 0
    assert "% foreground; picture: " in capsys.readouterr().out
    assert imread(tmp_path / "a.png")[..., :3].std() > 0.1


def test_overview_draws_labels_without_an_image(tmp_path):
    write_brain(tmp_path / "b.ome.zarr", raw=False, names=("one", "two"))
    assert run("overview", tmp_path / "b.ome.zarr", "--label", "two", "-o", tmp_path / "b.png") == 0
    assert imread(tmp_path / "b.png").shape[1] < 2200  # one panel


def test_overview_draws_any_volume(pair, tmp_path):
    image, labels = pair
    out = tmp_path / "c.png"
    assert run("overview", labels, "--raw", image, "--spacing", "6,1.6,1.6", "-o", out) == 0
    assert imread(out).shape[1] > 2200  # two panels


def test_a_tiff_of_several_channels_shows_each(tmp_path, rng):
    voxels = rng.integers(0, 999, (SHAPE[0], 2, *SHAPE[1:]), dtype=np.uint16)
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, voxels, imagej=True, metadata={"axes": "ZCYX"})
    labels = write_image(tmp_path / "labels.nii.gz", (rng.random(SHAPE) < 0.02).astype(np.uint8))
    found = segmentation_at(labels, raw=image)
    for channel, (volume,) in enumerate(found.channels):
        np.testing.assert_array_equal(volume.read(), voxels[:, channel])
    assert len(found.channels) == 2
    assert run("overview", labels, "--raw", image, "--channel", "1", "-o", tmp_path / "a.png") == 0


def test_instances_are_coloured_by_napari(tmp_path):
    """Classes have colours of ours; numbers of objects are told apart by napari's."""
    for dtype, ours in ((np.uint8, True), (np.uint32, False)):
        path = write_image(
            tmp_path / f"{np.dtype(dtype)}.nii.gz", (np.arange(np.prod(SHAPE)) // 8 % 99).reshape(SHAPE).astype(dtype)
        )
        _, (_, options, _) = layers(
            image_at(write_image(tmp_path / "image.nii.gz", np.ones(SHAPE, np.uint16)), labels=path)
        )
        assert ("colormap" in options) == ours


def label_missing(brain, folder):
    return ["overview", brain, "--label", "nuclei"], "has no label image nuclei; it holds segmentation"


def label_of_a_file(brain, folder):
    path = write_image(folder / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    return ["overview", path, "--label", "nuclei"], "has no label image nuclei; it holds none"


def several_labels(brain, folder):
    write_brain(folder / "two.ome.zarr", names=("one", "two"))
    return ["overview", folder / "two.ome.zarr"], "holds the label images one, two; give one of them"


def other_shape(brain, folder):
    raw = write_image(folder / "raw.nii.gz", np.zeros((6, 32, 41), np.uint16))
    return ["overview", brain, "--raw", raw], "6 × 32 × 41 .z, y, x., the segmentation .* 6 × 32 × 40"


def no_channel(brain, folder):
    return ["overview", brain, "--channel", "1"], "--channel 1: the image has the channels 0 to 0"


def nothing_there(brain, folder):
    return ["overview", folder / "nothing"], "there is no such file"


def no_picture(brain, folder):
    return ["overview", brain, "-o", folder / "a.jpg"], "give a PNG file in a folder that exists"


def no_folder(brain, folder):
    return ["overview", brain, "-o", folder / "nothing" / "a.png"], "give a PNG file in a folder that exists"


def damaged(brain, folder):
    (brain / "labels" / "zarr.json").write_text('{"zarr_format": 3, ')
    return ["overview", brain], "metadata cannot be read"


ERRORS = [
    label_missing,
    label_of_a_file,
    several_labels,
    other_shape,
    no_channel,
    nothing_there,
    no_picture,
    no_folder,
    damaged,
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.__name__)
def test_a_sentence_says_what_is_wrong(case, brain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, said = case(brain, tmp_path)
    with pytest.raises(SelmaError, match=said):
        run(*arguments)
    assert not list(tmp_path.glob("*.png*"))


INDICES = [
    (slice(None),) * 3,
    (2,),
    (2, slice(3, 9)),
    (slice(1, 5), 4, slice(0, 40, 3)),
    (..., 7),
    (1, ..., slice(2, 4)),
    (-1, 2, 3),
    (np.int64(3), slice(None), slice(None)),
    ...,
    slice(2, 2),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_lazy_array_is_indexed_like_an_array(pair, index):
    volume = open_volume(pair[0])
    lazy, whole = LazyArray(volume), volume.read()
    np.testing.assert_array_equal(lazy[index], whole[index])
    assert lazy[index].shape == whole[index].shape


def test_a_lazy_array_refuses_what_it_cannot_read(pair):
    lazy = LazyArray(open_volume(pair[0]))
    for index in (6, slice(None, None, -1)):
        with pytest.raises(IndexError):
            lazy[index]
    np.testing.assert_array_equal(np.asarray(lazy), lazy[...])


def test_layers_of_a_prediction(tmp_path):
    write_brain(tmp_path / "brain.ome.zarr", channels=2)
    first, second, labels = layers(image_at(tmp_path / "brain.ome.zarr"))
    assert [first[2], second[2], labels[2]] == ["image", "image", "labels"]
    assert [one[1]["name"] for one in (first, second, labels)] == [
        "image, channel 0",
        "image, channel 1",
        "segmentation",
    ]
    for data, options, _ in (first, second, labels):
        assert [level.shape for level in data] == [SHAPE, (6, 16, 20)]
        assert (options["scale"], options["multiscale"]) == (SPACING, True)
    low, high = first[1]["contrast_limits"]
    assert 100 <= low < high < 4000
    assert labels[1]["features"] == {"index": [0, 2], "class": ["", "blood vessel"]}
    assert labels[0][0].dtype == np.uint8


def test_layers_of_two_files(pair):
    image, labels = pair
    (data, options, _), (marks, of_labels, _) = layers(image_at(image, labels=labels))
    assert (data.shape, marks.shape) == (SHAPE, SHAPE)
    assert "scale" not in options
    assert options["multiscale"] is False
    (_, options, _), _ = layers(image_at(image, labels=labels), (6.0, 2.0, 2.0))
    assert options["scale"] == (6.0, 2.0, 2.0)
    assert "features" not in of_labels
    assert len(layers(image_at(image))) == 1


def test_layers_over_the_same_volume_lie_over_each_other_at_any_resolution(tmp_path):
    """A segmentation of a coarser level, without voxel size, under an image that has one."""
    _, labels = write_brain(tmp_path / "brain.ome.zarr")
    coarse = write_image(tmp_path / "coarse.nii.gz", labels[:, ::2, ::2])
    image, over = layers(image_at(tmp_path / "brain.ome.zarr", labels=coarse))
    assert image[1]["scale"] == SPACING
    assert over[1]["scale"] == (6.0, 3.0, 3.0)
    assert over[1]["translate"] == (3.0, 1.5, 1.5)


# the viewer's model touches interfaces that numpy and pydantic are about to change
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
def test_napari_takes_the_layers_and_reads_only_what_it_shows(tmp_path, monkeypatch):
    napari_layers = pytest.importorskip("napari.layers")
    from napari.components import ViewerModel

    write_brain(tmp_path / "brain.ome.zarr")
    found = image_at(tmp_path / "brain.ome.zarr")
    viewer, read = ViewerModel(), []
    for level in (found.labels[0], found.channels[0][0]):
        monkeypatch.setattr(level, "_read", lambda *box, inner=level._read: read.append(box) or inner(*box))
    for data, options, kind in layers(found):
        viewer.add_layer(napari_layers.Layer.create(data, options, kind))
    viewer.dims.set_point(0, 15.0)
    assert [layer.name for layer in viewer.layers] == ["image", "segmentation"]
    assert all(z.stop - z.start == 1 for z, _, _ in read)  # never a whole volume
    image, labels = viewer.layers
    np.testing.assert_allclose(image.scale, SPACING)
    assert labels.get_status((15.0, 3.0, 3.0), world=True)
    np.testing.assert_allclose(image.extent.world, labels.extent.world)


@pytest.fixture
def napari(monkeypatch):
    """A napari that remembers what it is given."""
    shown = SimpleNamespace(added=[], ran=0)

    def started():
        shown.ran += 1

    def viewer(title):
        shown.title = title
        bar, dims = SimpleNamespace(visible=False), SimpleNamespace(axis_labels=())
        shown.viewer = SimpleNamespace(add_layer=shown.added.append, scale_bar=bar, dims=dims)
        return shown.viewer

    create = SimpleNamespace(create=lambda data, options, kind: (kind, options["name"]))
    monkeypatch.setitem(
        sys.modules, "napari", SimpleNamespace(Viewer=viewer, run=started, layers=SimpleNamespace(Layer=create))
    )
    monkeypatch.setattr(viewing, "find_spec", lambda name: object())
    monkeypatch.setenv("DISPLAY", ":0")
    return shown


def test_view_opens_napari(brain, napari):
    assert run("view", brain) == 0
    assert napari.added == [("image", "image"), ("labels", "segmentation")]
    assert (napari.ran, napari.title) == (1, "brain.ome.zarr")
    assert napari.viewer.scale_bar.visible
    assert napari.viewer.dims.axis_labels == ("z", "y", "x")


def test_view_opens_two_files(pair, napari):
    assert run("view", pair[0], "--labels", pair[1], "--spacing", "6,2,2") == 0
    assert napari.added == [("image", "image"), ("labels", "segmentation")]


@pytest.mark.parametrize("lacking", [{"napari"}, {"PyQt6", "PySide6", "PyQt5", "PySide2"}], ids=["napari", "Qt"])
def test_view_says_how_to_install_napari(brain, napari, monkeypatch, lacking):
    monkeypatch.setattr(viewing, "find_spec", lambda name: None if name in lacking else object())
    with pytest.raises(SelmaError, match=r'pip install "napari\[all\]" napari-ome-zarr, and this command again'):
        run("view", brain)
    assert not napari.added


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_view_says_that_there_is_no_display(brain, napari, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SelmaError, match="no display to open a window on"):
        run("view", brain)
    assert not napari.added


def test_view_names_what_is_not_there(tmp_path):
    with pytest.raises(SelmaError, match="no such file"):
        run("view", tmp_path / "nothing")


@pytest.fixture
def raw(tmp_path):
    """An Imaris file with two data sets, two channels and three time points of the shape of the brain, and its voxels by data set and channel."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 900, (2, 2, *SHAPE), dtype=np.uint16)
    for number, channels in enumerate(images):
        write_imaris(
            tmp_path / "raw.ims",
            list(channels),
            spacing_um_zyx=SPACING,
            levels=1,
            names=("GFP", "cFos"),
            times=3,
            data_set=str(number or ""),
        )
    return tmp_path / "raw.ims", images


def test_view_shows_the_chosen_image_of_a_file_under_the_labels_of_an_ome_zarr(brain, raw, napari, monkeypatch):
    path, images = raw
    opened_images = []
    monkeypatch.setattr(viewing, "layers", lambda image, spacing: opened_images.append(image) or layers(image, spacing))
    assert run("view", path, "--labels", brain, "--scene", "1", "--time", "2") == 0
    assert napari.added == [("image", "image, GFP"), ("image", "image, cFos"), ("labels", "segmentation")]
    for channel, (volume,) in enumerate(opened_images[0].channels):
        np.testing.assert_array_equal(volume.read(), images[1, channel] + 2)


@pytest.mark.parametrize("channel", [0, 1])
def test_overview_draws_the_chosen_image_of_a_file_with_the_labels_of_an_ome_zarr(channel, brain, raw, tmp_path):
    path, images = raw
    plain = write_image(tmp_path / "plain.nii.gz", images[1, channel] + 2, SPACING)
    choice = ["--scene", "1", "--time", "2", "--channel", channel]
    assert run("overview", brain, "--raw", path, *choice, "-o", tmp_path / "chosen.png") == 0
    assert run("overview", brain, "--raw", plain, "-o", tmp_path / "plain.png") == 0
    np.testing.assert_array_equal(imread(tmp_path / "chosen.png"), imread(tmp_path / "plain.png"))


@pytest.mark.parametrize("command", ["view", "overview"])
@pytest.mark.parametrize("choice", [["--scene", "0"], ["--time", "0"]])
def test_a_choice_without_an_image_is_refused(command, choice, tmp_path, napari, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_brain(tmp_path / "b.ome.zarr", raw=False)
    with pytest.raises(SelmaError, match=f"has no image, which {choice[0]} is for"):
        run(command, tmp_path / "b.ome.zarr", *choice)
