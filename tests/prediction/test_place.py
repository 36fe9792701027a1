"""A result is complete only if its sources are those of then, and is deleted only if nobody has added to it."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import (
    Execution,
    VolumePrediction,
    block_prediction,
    finishing,
    predict_volume,
    slab_reading,
    start,
)
from nnunet_selma.prediction.model import Model, ModelSettings
from nnunet_selma.prediction.place import resolve_output
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.start import start_run
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import create_labels
from tests.prediction.models import texture, write_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with slices, a mask, a model, and the result of predicting the slices."""
    root = tmp_path_factory.mktemp("finished")
    (root / "slices").mkdir()
    for number, plane in enumerate(texture(np.random.default_rng(3), (20, 32, 32))[0]):
        tifffile.imwrite(root / "slices" / f"z{number:04d}.tif", plane)
    tifffile.imwrite(root / "mask.tif", np.ones((20, 32, 32), np.uint8))
    write_model(root / "model")
    predict_volume(prediction(root), Execution())
    return root


@pytest.fixture
def work(finished, tmp_path):
    """A copy of the finished work, at another place and with other times."""
    shutil.copytree(finished, tmp_path / "work", copy_function=shutil.copy)
    return tmp_path / "work"


def prediction(root, **more):
    settings = VolumePrediction(
        inputs=(root / "slices",),
        output=root / "brain.ome.zarr",
        model=ModelSettings(folder=root / "model", folds=("0",)),
        mask=root / "mask.tif",
        block=32,
    )
    return replace(settings, **more)


def said(settings, **execution):
    """The lines that a call prints."""
    lines = []
    predict_volume(settings, Execution(**execution), say=lines.append)
    return "\n".join(lines)


def change_slice(root):
    file = root / "slices" / "z0007.tif"
    tifffile.imwrite(file, tifffile.imread(file) + 1)


def change_mask(root):
    mask = np.ones((20, 32, 32), np.uint8)
    mask[:8] = 0
    tifffile.imwrite(root / "mask.tif", mask)


def change_model(root):
    shutil.rmtree(root / "model")
    write_model(root / "model", seed=5)


CHANGES = [(change_slice, "another input"), (change_mask, "another mask"), (change_model, "another model")]


def test_a_copy_of_everything_is_complete_already(work):
    assert "is complete already" in said(prediction(work))
    (work / "slices").rename(work / "elsewhere")
    assert "is complete already" in said(prediction(work, inputs=(work / "elsewhere",), max_memory=8.0, block=16))


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_changed_source_is_named_and_predicted_on_request(work, change, words):
    change(work)
    with pytest.raises(SelmaError, match=rf"exists already, and is of {words} \(the (contents|files) .* --overwrite"):
        said(prediction(work))
    said(prediction(work), overwrite=True)
    assert "is complete already" in said(prediction(work))


def test_files_that_lie_among_the_slices_are_no_slices(work):
    (work / "slices" / "notes.txt").write_text("mine")
    assert "is complete already" in said(prediction(work))


@pytest.fixture
def interrupted(work, monkeypatch):
    """The work with a run that was interrupted when all blocks were written."""
    with monkeypatch.context() as patch:
        patch.setattr("nnunet_selma.prediction.complete_run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            said(prediction(work, output=work / "second.ome.zarr"))
    return work


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_run_does_not_go_on_with_another_source(interrupted, change, words):
    change(interrupted)
    with pytest.raises(SelmaError, match=rf"holds an interrupted run with {words}"):
        said(prediction(interrupted, output=interrupted / "second.ome.zarr"))


def test_a_run_goes_on_with_less_memory_and_moved_files(interrupted):
    (interrupted / "slices").rename(interrupted / "elsewhere")
    (interrupted / "mask.tif").rename(interrupted / "m.tif")
    (interrupted / "model").rename(interrupted / "n")
    settings = prediction(interrupted, output=interrupted / "second.ome.zarr", max_memory=4.0)
    moved = replace(
        settings,
        inputs=(interrupted / "elsewhere",),
        mask=interrupted / "m.tif",
        model=replace(settings.model, folder=interrupted / "n"),
        block=None,
    )
    block = next(settings.staging.glob("blocks/*.json"))
    block.unlink()
    before = {file: file.stat().st_mtime_ns for file in settings.staging.glob("blocks/*.json")}
    run = start_run(resolve_output(moved), "cpu", overwrite=False).run
    assert run.settings.max_memory == 4.0
    assert run.facts.block == (32, 32, 32)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert predict_volume(moved, Execution()) is not None
    labels = [
        open_volume(path / "labels" / "segmentation").read()
        for path in (settings.output, interrupted / "brain.ome.zarr")
    ]
    assert np.array_equal(*labels)


def test_blocks_that_do_not_fit_any_more_are_named(interrupted):
    """One block is still to be predicted; where none is, no memory is asked for."""
    next((interrupted / ".second.ome.zarr.partial" / "blocks").glob("*.json")).unlink()
    settings = prediction(interrupted, output=interrupted / "second.ome.zarr", max_memory=0.5)
    with pytest.raises(SelmaError, match=r"--max-memory 0.5: .* blocks of 32×32×32 voxels.* --overwrite to begin anew"):
        said(settings)
    with pytest.raises(SelmaError, match=r"another block \(32 there, 16 now\)"):
        said(replace(settings, max_memory=16.0, block=16))


def test_overwriting_replaces_what_nobody_touched(work):
    said(prediction(work), also=("tiff",))
    said(prediction(work, probabilities=True), overwrite=True)
    assert not (work / "brain_segmentation").exists()  # slices of the result that is gone
    said(prediction(work), overwrite=True, also=("tiff",))
    assert not (work / "brain_probabilities.ome.zarr").exists()
    assert (work / "brain_segmentation").is_dir()


def add_label(root):
    shutil.copytree(root / "brain.ome.zarr" / "labels" / "segmentation", root / "brain.ome.zarr" / "labels" / "mine")
    create_labels(root / "brain.ome.zarr", ["mine"], "0.5")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_label, "labels/mine"),
        (lambda root: (root / "brain.ome.zarr" / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda root: (root / "brain_segmentation" / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda root: (root / "brain_segmentation.json").unlink(), "has no record"),
    ],
)
def test_what_others_added_is_named_and_kept(work, change, named):
    said(prediction(work), also=("tiff",))
    change(work)
    before = sorted(path for path in work.rglob("*"))
    with pytest.raises(SelmaError, match=named):
        said(prediction(work), overwrite=True)
    assert sorted(path for path in work.rglob("*")) == before


def test_what_is_added_while_a_run_overwrites_is_kept(work, monkeypatch):
    complete = finishing.complete_run

    def late(run, *arguments, **options):
        add_label(work)
        return complete(run, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("nnunet_selma.prediction.complete_run", late)
        with pytest.raises(SelmaError, match="labels/mine"):
            said(prediction(work), overwrite=True)
    assert (work / "brain.ome.zarr" / "labels" / "mine").is_dir()
    shutil.rmtree(work / "brain.ome.zarr" / "labels" / "mine")
    said(prediction(work), overwrite=True)
    assert "is complete already" in said(prediction(work))


def test_labels_in_an_input_are_replaced_only_if_this_program_wrote_them(work):
    output = work / "brain.ome.zarr"
    beside = prediction(work, inputs=(output,), spacing_um_zyx=None)
    shutil.copytree(output / "labels" / "segmentation", output / "labels" / "manual")
    with pytest.raises(SelmaError, match="was not written by this command"):
        said(replace(beside, name="manual"), overwrite=True)
    said(replace(beside, name="second"))
    said(replace(beside, name="second", tissue_only=False), overwrite=True)
    assert (output / "labels" / "manual").is_dir()
    with pytest.raises(SelmaError, match="labels/manual, labels/second"):
        said(prediction(work), overwrite=True)


def test_a_file_of_the_name_of_the_record_is_kept(work):
    other = prediction(work, output=work / "other.ome.zarr")
    write_json(other.record, {"mine": 1})
    with pytest.raises(SelmaError, match="was not written by this command, and would be lost"):
        said(other)
    assert read_json(other.record) == {"mine": 1}


def test_no_input_is_overwritten(work):
    output = work / "brain.ome.zarr"
    for change in ({"mask": output / "labels" / "segmentation"}, {"inputs": (output / "labels" / "segmentation",)}):
        with pytest.raises(SelmaError, match="holds the input"):
            said(prediction(work, **change), overwrite=True)


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "dots.", "dots..", "a/b", "", "zarr.json"])
def test_names_that_are_no_names_of_folders_are_refused(work, name):
    with pytest.raises(SelmaError, match="--name"):
        said(prediction(work, name=name))


def test_the_model_is_opened_and_hashed_once_and_the_volume_opened_once(work, monkeypatch):
    calls = []

    def counted(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **o: (calls.append(name), function(*a, **o))[1])

    counted(start, "open_channels")
    counted(slab_reading, "open_channels")
    counted(block_prediction, "open_channels")
    counted(ModelSettings, "fingerprint")
    counted(Model, "_load")
    said(prediction(work, output=work / "once.ome.zarr", raw=False))
    assert sorted(calls) == ["_load", "fingerprint", "open_channels"]


def test_a_slice_that_is_mended_while_slabs_are_to_be_read_begins_the_reading_anew(work):
    settings = resolve_output(prediction(work, output=work / "mended.ome.zarr"))
    first = start_run(settings, "cpu", overwrite=False).run
    assert start_run(settings, "cpu", overwrite=False).run.id == first.id
    change_slice(work)
    second = start_run(settings, "cpu", overwrite=False).run
    assert second.id != first.id
    with pytest.raises(SelmaError, match="another process"):
        Run(first.folder).check_current(first.id)
    os.utime(work / "slices" / "z0001.tif")
    assert start_run(settings, "cpu", overwrite=False).run.id == second.id
