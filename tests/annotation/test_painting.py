"""A cube in napari; no Qt is needed for these tests, and napari only for those that paint as a person does."""

import shlex
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.annotation import cube_label
from nnunet_selma.annotation.cube_label import CubeLabel
from nnunet_selma.annotation.painting import PaintingWindow, cube_layers
from nnunet_selma.pictures import viewing
from nnunet_selma.volumes import open_volume
from tests.annotation.brains import SPACING_UM
from tests.annotation.windows import MODULES, Button, Layer, Layers, Timer, napari_layer, stroke, window

SHAPE = (20, 20, 20)


def test_layers_lie_over_each_other(cube):
    *around, image, painted = cube_layers(CubeLabel.open(cube))
    assert [kind for *_, kind in (*around, image, painted)] == ["image", "image", "labels"]
    assert "not to be annotated" in around[0][1]["name"]
    assert painted[1]["name"] == "label"
    assert painted[1]["scale"] == image[1]["scale"] == pytest.approx(SPACING_UM)
    assert painted[1]["translate"] == image[1]["translate"]
    # the same voxel of the brain is at the same place in both
    big, small = np.asarray(around[0][0]), np.asarray(image[0])
    shift = np.array(image[1]["translate"]) - around[0][1]["translate"]
    first = np.rint(shift / SPACING_UM).astype(int)
    np.testing.assert_allclose(shift, first * SPACING_UM)
    np.testing.assert_array_equal(big[tuple(slice(a, a + n) for a, n in zip(first, SHAPE, strict=True))], small)


@pytest.fixture
def shown(monkeypatch):
    """Stands for what needs Qt; sentences that the window shows."""
    sentences: list = []
    # napari needs the modules that are replaced
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        import_module("napari.components")
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(viewing, "notify", sentences.append)
    return sentences


@pytest.fixture
def viewer(shown):
    """Stands for napari's viewer."""
    return SimpleNamespace(layers=Layers(), window=window())


@pytest.fixture
def view(viewer, monkeypatch):
    """The command, in whose window a function paints and presses the button."""

    def run(cube, paint):
        def show(title, layers, prepare):
            assert title == cube.name
            viewer.layers["label"] = Layer(layers[-1][0])
            prepare(viewer)
            paint(viewer.layers["label"])

        monkeypatch.setattr(viewing, "check_napari", lambda: None)
        monkeypatch.setattr(viewing, "show", show)
        monkeypatch.setenv("DISPLAY", ":0")
        return cli.main(["view", str(cube)])

    return run


def test_only_the_user_saves(cube, viewer):
    label, lines = CubeLabel.open(cube), []
    layer = viewer.layers["label"] = Layer(label.voxels.copy())
    PaintingWindow(label, lines.append).prepare(viewer)
    assert viewer.layers.selection.active is layer
    layer.data[5, 6, 7] = 1
    assert open_volume(label.path).read().sum() == 0
    assert not lines
    text, press = Button.buttons[-1]
    assert text == "Save label.nii.gz"
    press()
    assert open_volume(label.path).read()[5, 6, 7] == 1
    assert "saved; the version before is" in lines[0]


@pytest.mark.parametrize("save", [True, False])
def test_the_command_opens_a_cube(cube, view, save, shown, capsys):
    def paint(layer):
        layer.data[1, 1, 1] = 2
        layer.events.paint()
        Timer.wait()
        assert open_volume(cube / "unsaved_0001.nii.gz").read()[1, 1, 1] == 2
        if save:
            Button.buttons[-1][1]()

    assert view(cube, paint) == 0
    out = capsys.readouterr().out
    assert ("1 save" in out) == save
    assert len(shown) == save
    assert all("saved; the version before is" in sentence for sentence in shown)
    assert ("unsaved_0001.nii.gz: holds what was painted and not saved; " in out) != save
    assert (cube / "unsaved_0001.nii.gz").exists() != save
    assert (open_volume(cube / "label.nii.gz").read()[1, 1, 1] == 2) == save
    assert cli.main(["view", str(cube), "--labels", str(cube / "label.nii.gz")]) == 2
    assert "needs no --labels" in capsys.readouterr().err


def test_what_was_painted_is_kept_when_napari_fails(cube, view, capsys):
    def paint(layer):
        layer.data[1, 1, 1] = 2
        raise ZeroDivisionError

    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            view(cube, paint)
        kept = cube / f"unsaved_{number:04d}.nii.gz"
        assert open_volume(kept).read()[1, 1, 1] == 2
        assert f"{kept}: holds what was painted and not saved; " in capsys.readouterr().out
    (cube / "unsaved_0003.nii.gz").touch()  # of a window that was killed before its first stroke was in the file
    assert view(cube, lambda layer: None) == 0
    assert capsys.readouterr().out.count("not saved in a window that was closed, killed, or is still open") == 2


def test_what_was_kept_can_be_seen_and_taken(cube, view, monkeypatch, capsys):
    def paint(layer):
        layer.data[1, 1, 1] = 2

    assert view(cube, paint) == 0
    look = next(line for line in capsys.readouterr().out.splitlines() if "to see it" in line)
    opened_layers = []
    monkeypatch.setattr(viewing, "show", lambda title, layers: opened_layers.extend(layers))
    assert cli.main(shlex.split(look.partition(": ")[2])[1:]) == 0
    (_, _, kind), (voxels, _, labels) = opened_layers
    assert (kind, labels, np.asarray(voxels)[1, 1, 1]) == ("image", "labels", 2)
    (cube / "label.nii.gz").rename(cube / "before.nii.gz")
    (cube / "unsaved_0001.nii.gz").rename(cube / "label.nii.gz")
    assert CubeLabel.open(cube).voxels[1, 1, 1] == 2


def test_a_full_disk_is_told_and_loses_nothing(cube, viewer, monkeypatch):
    label, lines = CubeLabel.open(cube), []
    layer = viewer.layers["label"] = Layer(label.voxels)
    PaintingWindow(label, lines.append).prepare(viewer)

    def paint(value):
        layer.data[0, 0, value] = value
        layer.events.paint()
        Timer.wait()

    paint(1)
    with monkeypatch.context() as full:
        full.setattr(cube_label, "write_label_nifti", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        paint(2)
        Button.buttons[-1][1]()
    assert lines == 2 * [
        f"could not be written: no space left; make room for {cube}, and save before you close this window"
    ]
    assert open_volume(cube / "unsaved_0001.nii.gz").read().sum() == 1
    assert open_volume(label.path).read().sum() == 0
    assert open_volume(label.write_unsaved()).read().sum() == 3
    paint(3)
    assert open_volume(cube / "unsaved_0001.nii.gz").read().sum() == 6
    assert len(lines) == 2


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 21), (2, 20, 20, 20)])
def test_data_of_another_shape_are_told_and_not_written(cube, viewer, shape):
    label, lines = CubeLabel.open(cube), []
    layer = viewer.layers["label"] = Layer(label.voxels)
    PaintingWindow(label, lines.append).prepare(viewer)
    before = label.path.read_bytes()
    layer.data[0, 0, 1] = 7
    layer.events.paint()
    Timer.wait()
    good, layer.data = layer.data, np.ones(shape, np.uint8)
    layer.events.data()
    layer.events.set_data()
    Timer.wait(1000)
    Button.buttons[-1][1]()
    assert len(lines) == 2
    assert all(f"has {' × '.join(map(str, shape))} voxels, the cube 20 × 20 × 20" in line for line in lines)
    assert label.path.read_bytes() == before
    assert open_volume(label.write_unsaved()).read().sum() == 7
    layer.data = good
    Button.buttons[-1][1]()
    assert open_volume(label.path).read().sum() == 7


@pytest.fixture
def painted(cube, request):
    """The label of a cube, and its layer in napari."""
    pytest.importorskip("napari.components")
    request.getfixturevalue("shown")
    label = CubeLabel.open(cube)
    return label, napari_layer(label)


# the viewer's model touches interfaces that numpy and pydantic are about to change
napari_warns = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)


@napari_warns
def test_every_stroke_is_kept_when_it_ends(cube, painted):
    label, layer = painted
    kept = cube / "unsaved_0001.nii.gz"

    def on_disk(value):
        return int((open_volume(kept).read() == value).sum())

    stroke(layer, 3, (2, 2), (2, 9), (2, 12))
    assert not kept.exists()  # not at every move of the mouse
    Timer.wait()
    assert on_disk(3) == 11
    layer.paint_polygon([(4, 5, 5), (4, 5, 9), (4, 9, 9)], 5)
    Timer.wait()
    polygon = int((layer.data == 5).sum())
    assert on_disk(5) == polygon > 0
    layer.undo()
    Timer.wait()
    assert on_disk(5) == polygon
    Timer.wait(1000)
    assert (on_disk(3), on_disk(5)) == (11, 0)
    layer.redo()
    Timer.wait(1000)
    assert on_disk(5) == polygon
    layer.data = layer.data + (layer.data == 5)
    assert label.voxels is layer.data
    Timer.wait(1000)
    assert (on_disk(5), on_disk(6)) == (0, polygon)
    assert [path.name for path in label.unsaved_files()] == [kept.name]
    assert open_volume(label.path).read().sum() == 0


@napari_warns
def test_other_layers_of_labels_are_named_and_kept(cube, view, viewer, shown, capsys):
    model = pytest.importorskip("napari.components").ViewerModel()

    def paint(_):
        for data, options, kind in cube_layers(CubeLabel.open(cube)):
            model._add_layer_from_data(data, options, kind)
        model._new_labels()  # as napari's button does; it covers the surroundings
        new, inside = model.layers[-1], model.layers["label"]
        first = np.rint(inside.world_to_data(new.data_to_world((0, 0, 0)))).astype(int)
        assert (first < 0).all()
        new.data[tuple([3, 4, 5] - first)] = 9
        new.data[0, 0, :2] = 9
        model.add_labels(np.ones((20, 20), np.uint8), name="flat")
        model.add_labels(np.ones((20, 20, 20), np.uint8), name="shifted")
        model.add_labels(np.zeros((20, 20, 20), np.uint8), name="empty")
        viewer.layers["label"].__dict__.update(ndim=3, world_to_data=inside.world_to_data)
        viewer.layers.update({layer.name: layer for layer in model.layers if layer.name != "label"})
        Button.buttons[-1][1]()

    assert view(cube, paint) == 0
    assert [sentence.partition(" holds")[0] for sentence in shown[1:]] == [
        f"the layer {name!r}" for name in ("Labels", "flat", "shifted")
    ]
    out = capsys.readouterr().out
    kept = cube / "unsaved_0001.nii.gz"
    assert f"{kept}: holds what the layer 'Labels' held and was not saved; 2 voxels outside the cube" in out
    assert f"view {cube / 'image.ome.zarr'} --labels {kept}" in out
    voxels = open_volume(kept).read()
    assert (voxels[3, 4, 5], voxels.sum(), voxels.shape) == (9, 9, SHAPE)
    assert "the layer 'flat' held voxels that were not saved, and they cannot be kept: it has 2 axes" in out
    assert "the layer 'shifted' held voxels that were not saved, and they cannot be kept: its voxels do not" in out
    assert "empty" not in out
    assert not (cube / "unsaved_0002.nii.gz").exists()
    assert open_volume(cube / "label.nii.gz").read().sum() == 0


def test_a_layer_that_is_no_label_is_named_when_the_window_is_closed(cube, view, capsys):
    def paint(layer):
        layer.data[1, 1, 1] = 2
        layer.data = np.ones((20, 20, 21), np.uint8)

    assert view(cube, paint) == 0
    out = capsys.readouterr().out
    assert "the painted layer has 20 × 20 × 21 voxels, the cube 20 × 20 × 20" in out
    assert open_volume(cube / "unsaved_0001.nii.gz").read().sum() == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_keeps_every_stroke_before(cube, view, capsys):
    pytest.importorskip("napari.components")
    before = (cube / "label.nii.gz").read_bytes()
    paint = f"from tests.annotation.windows import paint_until_killed; paint_until_killed({str(cube)!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", paint], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (cube / "label.nii.gz").read_bytes() == before
    kept = open_volume(cube / "unsaved_0001.nii.gz").read()
    assert {value: int((kept == value).sum()) for value in np.unique(kept)} == {0: kept.size - 8, 3: 8}
    assert view(cube, lambda layer: None) == 0
    assert (
        f"{cube / 'unsaved_0001.nii.gz'}: holds what was painted and not saved in a window" in capsys.readouterr().out
    )


def test_without_napari_a_sentence_comes(cube, monkeypatch, capsys):
    monkeypatch.setattr(viewing, "find_spec", lambda name: None)
    assert cli.main(["view", str(cube)]) == 2
    assert "napari is not installed" in capsys.readouterr().err
