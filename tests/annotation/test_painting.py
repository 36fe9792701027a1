"""The label of a cube in napari, which is not needed for these tests."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.annotation import painting
from nnunet_selma.annotation.painting import CubeLabel, cube_layers, let_save
from nnunet_selma.annotation.proposal import propose
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures import viewing
from nnunet_selma.volumes import open_volume
from tests.annotation.brains import SPACING_UM, write_brain
from tests.conftest import write_image

pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
SHAPE = (20, 20, 20)


@pytest.fixture
def cube(tmp_path):
    brain = write_brain(tmp_path / "mouse.nii.gz")
    propose([brain], tmp_path / "cubes", ProposalSettings(count=1, size=20, pool=2))
    return tmp_path / "cubes" / "cube_0001"


def test_saving_writes_the_label_and_keeps_every_version(cube):
    label = CubeLabel.open(cube)
    first = label.path.read_bytes()
    affine = open_volume(label.path).affine
    for number in (1, 2):
        label.voxels[number, 3, 4] = number
        assert label.save().endswith(f"saved; the version before is {cube / 'versions' / f'label_{number:04d}.nii.gz'}")
    assert (cube / "versions" / "label_0001.nii.gz").read_bytes() == first
    assert open_volume(cube / "versions" / "label_0002.nii.gz").read().sum() == 1
    saved = open_volume(label.path)
    np.testing.assert_array_equal(saved.read(), label.voxels)
    np.testing.assert_array_equal(saved.affine, affine)
    assert label.saves == 2
    assert label.keep_unsaved() is None


def test_a_kill_while_saving_keeps_the_label(cube, monkeypatch):
    label = CubeLabel.open(cube)
    before = label.path.read_bytes()
    label.voxels[:] = 1
    monkeypatch.setattr(painting, "write_label_nifti", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        label.save()
    assert label.path.read_bytes() == before


def test_what_was_not_saved_goes_beside_the_label(cube):
    label = CubeLabel.open(cube)
    before = label.path.read_bytes()
    label.voxels[0, 1, 2] = 7
    kept = label.keep_unsaved()
    assert open_volume(kept).read()[0, 1, 2] == 7
    assert label.path.read_bytes() == before


def test_what_was_not_saved_earlier_is_kept_too(cube):
    for number in (1, 2):
        label = CubeLabel.open(cube)
        label.voxels[0, 1, 2] = number
        assert label.keep_unsaved() == cube / f"unsaved_{number:04d}.nii.gz"
    assert [open_volume(path).read()[0, 1, 2] for path in CubeLabel.open(cube).kept_unsaved()] == [1, 2]


def test_a_label_that_is_gone_is_saved_at_its_place(cube):
    label = CubeLabel.open(cube)
    affine = open_volume(label.path).affine
    label.path.rename(cube / "mine.nii.gz")
    label.voxels[3, 4, 5] = 1
    np.testing.assert_array_equal(open_volume(label.keep_unsaved()).affine, affine)
    assert "removed or renamed meanwhile" in label.save()
    np.testing.assert_array_equal(open_volume(label.path).affine, affine)
    np.testing.assert_array_equal(open_volume(label.path).read(), label.voxels)


def test_what_another_program_saved_is_kept_and_said(cube):
    label = CubeLabel.open(cube)
    label.voxels[3, 4, 5] = 1
    (cube / "versions").mkdir()
    (cube / "versions" / "label_0007 copy.nii.gz").write_bytes(b"a copy by hand")
    label.path.write_bytes(b"of another program")
    kept = cube / "versions" / "label_0001.nii.gz"
    assert f"another program had saved it meanwhile, and that version is {kept}" in label.save()
    assert kept.read_bytes() == b"of another program"
    assert "the version before is" in label.save()


def test_what_is_no_label_or_no_cube_is_refused(cube):
    voxels = np.zeros(SHAPE, np.uint32)
    voxels[1, 2, 3] = 65536
    write_image(cube / "label.nii.gz", voxels)
    with pytest.raises(SelmaError, match="holds the value 65536"):
        CubeLabel.open(cube)
    (cube / "cube.json").write_text('{"edges": 12}')
    with pytest.raises(SelmaError, match="comes from another program"):
        CubeLabel.open(cube)


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


class Layer:
    def __init__(self, data):
        self.data = data


class Layers(dict):
    selection = SimpleNamespace(active=None)


class Button:
    """Stands for magicgui's button."""

    native = "button"
    buttons: ClassVar[list] = []

    def __init__(self, text):
        self.changed = SimpleNamespace(connect=lambda call: Button.buttons.append((text, call)))


@pytest.fixture
def viewer(monkeypatch):
    """Stands for napari's viewer, in which a person paints a voxel."""
    monkeypatch.setitem(sys.modules, "magicgui", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "magicgui.widgets", SimpleNamespace(PushButton=Button))
    docked: list = []
    return SimpleNamespace(
        layers=Layers(),
        docked=docked,
        window=SimpleNamespace(add_dock_widget=lambda widget, **_: docked.append(widget)),
    )


def test_only_the_user_saves(cube, viewer):
    label, lines = CubeLabel.open(cube), []
    layer = viewer.layers["label"] = Layer(label.voxels.copy())
    let_save(viewer, label, lines.append)
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
def test_the_command_opens_a_cube(cube, viewer, save, monkeypatch, capsys):
    def show(title, layers, prepare):
        assert title == "cube_0001"
        viewer.layers["label"] = Layer(layers[-1][0])
        prepare(viewer)
        viewer.layers["label"].data[1, 1, 1] = 2
        if save:
            Button.buttons[-1][1]()

    monkeypatch.setattr(viewing, "check_napari", lambda: None)
    monkeypatch.setattr(viewing, "show", show)
    monkeypatch.setenv("DISPLAY", ":0")
    assert cli.main(["view", str(cube)]) == 0
    out = capsys.readouterr().out
    assert ("1 save" in out) == save
    assert ("holds what was painted and not saved" in out) != save
    assert (open_volume(cube / "label.nii.gz").read()[1, 1, 1] == 2) == save
    assert cli.main(["view", str(cube), "--labels", str(cube / "label.nii.gz")]) == 2
    assert "needs no --labels" in capsys.readouterr().err


def test_what_was_painted_is_kept_when_napari_fails(cube, viewer, monkeypatch, capsys):
    def show(title, layers, prepare):
        viewer.layers["label"] = Layer(layers[-1][0])
        prepare(viewer)
        viewer.layers["label"].data[1, 1, 1] = 2
        raise ZeroDivisionError

    monkeypatch.setattr(viewing, "check_napari", lambda: None)
    monkeypatch.setattr(viewing, "show", show)
    monkeypatch.setenv("DISPLAY", ":0")
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            cli.main(["view", str(cube)])
        kept = cube / f"unsaved_{number:04d}.nii.gz"
        assert open_volume(kept).read()[1, 1, 1] == 2
        assert f"{kept}: holds what was painted and not saved; " in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        cli.main(["view", str(cube)])
    assert capsys.readouterr().out.count("in an earlier session") == 2


def test_without_napari_a_sentence_comes(cube, monkeypatch, capsys):
    monkeypatch.setattr(viewing, "find_spec", lambda name: None)
    assert cli.main(["view", str(cube)]) == 2
    assert "napari is not installed" in capsys.readouterr().err


def test_a_label_of_another_size_is_named(cube):
    write_image(cube / "label.nii.gz", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(SelmaError, match="3 × 4 × 5 voxels"):
        CubeLabel.open(cube)
