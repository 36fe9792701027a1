"""Killed, shared out, done twice: a run has the result of an undisturbed one."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
import zarr

from nnunet_selma import cli, prediction
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, finishing, predict_volume
from nnunet_selma.prediction.block_prediction import open_predictor
from nnunet_selma.prediction.place import resolve_output
from nnunet_selma.prediction.slab_reading import SlabToRead, scan_slab
from nnunet_selma.prediction.start import start_run
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from tests.plans import plans
from tests.prediction.models import texture, write_model

SHAPE = (50, 60, 120)


def write_slices(folder, voxels):
    folder.mkdir()
    for number, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"z{number:04d}.tif", plane)
    return folder


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A brain of TIFF slices, half of it empty, a model, and what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("brain")
    rng = np.random.default_rng(3)
    voxels = texture(rng, SHAPE)[0]
    voxels[:, :, 38:] = rng.integers(1, 9, voxels[:, :, 38:].shape)
    settings = VolumePrediction(
        inputs=(write_slices(root / "slices", voxels),),
        output=root / "whole.ome.zarr",
        model=write_model(root / "model"),
        spacing_um_zyx=(4.0, 2.0, 2.0),
        block=32,
    )
    predict_volume(settings, Execution())
    return settings


def segmentation(settings):
    return open_volume(settings.output / "labels" / settings.name).read()


def command(settings, output, *more):
    """The same prediction typed by a user."""
    model = ["-m", str(settings.model.folder), "--block", "32", "--spacing", "4,2,2"]
    return ["predict-volume", str(settings.inputs[0]), "-o", str(output), *model, *more]


def process(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "nnunet_selma.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def assert_same(settings, output):
    other = replace(settings, output=output)
    assert np.array_equal(segmentation(other), segmentation(settings))
    image, expected = (open_volume(one.output) for one in (other, settings))
    assert np.array_equal(image.read(), expected.read())
    assert image.spacing_um_zyx == expected.spacing_um_zyx


def test_the_image_and_both_records_are_there(brain):
    assert np.array_equal(open_volume(brain.output).read(), open_volume(brain.inputs[0]).read())
    assert open_volume(brain.output).spacing_um_zyx == (4.0, 2.0, 2.0)
    record = read_json(brain.record)
    assert record["result"]["blocks"] == 2 * 2 * 4
    assert record["result"]["foreground"] == np.count_nonzero(segmentation(brain))
    assert not list(brain.output.parent.glob(".*"))


def test_empty_space_is_skipped_and_the_rest_is_as_if_it_were_not(brain, tmp_path):
    everything = replace(brain, output=tmp_path / "all.ome.zarr", tissue_only=False)
    whole, skipped = predict_volume(everything, Execution()), read_json(brain.record)
    assert skipped["result"]["tissue share"] < 0.8
    assert skipped["result"]["tiles"] < 0.8 * whole.tiles
    assert skipped["result"]["blocks without tissue"] == 2 * 2 * 2
    differ = (segmentation(brain) != segmentation(everything)).any(axis=(0, 1))
    assert not differ[:40].any()  # the last grid box with tissue ends here
    assert differ[-16:].any()


def test_a_mask_says_where_to_predict(brain, tmp_path):
    mask = np.zeros((10, 12, 24), np.uint8)
    mask[:5] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    masked = replace(brain, output=tmp_path / "masked.ome.zarr", mask=tmp_path / "mask.tif")
    predict_volume(masked, Execution())
    labels = segmentation(masked)
    assert np.array_equal(labels[:25, :, :38], segmentation(brain)[:25, :, :38])
    assert not labels[25:].any()  # the mask's half ends within a grid box
    mask[3:] = 0  # ends at slice 15: tiles of 16 slices reach beyond, in the same block
    mask[:, :6] = 0
    tifffile.imwrite(tmp_path / "less.tif", mask)
    less = replace(brain, output=tmp_path / "less.ome.zarr", mask=tmp_path / "less.tif")
    predict_volume(less, Execution())
    assert segmentation(less)[:15, 30:].any()
    assert not segmentation(less)[15:].any()
    assert not segmentation(less)[:, :30].any()


def test_a_killed_run_goes_on(brain, tmp_path):
    output = tmp_path / "killed.ome.zarr"
    staging = replace(brain, output=output).staging
    for blocks in (1, 5):
        running = process(command(brain, output))
        while running.poll() is None and len(list(staging.glob("blocks/*.json"))) < blocks:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not output.exists()
    assert 5 <= len(list(staging.glob("blocks/*.json"))) < 16
    assert cli.main(command(brain, output)) == 0
    assert_same(brain, output)
    assert not list(tmp_path.glob(".*"))


def test_shares_make_the_whole_in_any_order(brain, tmp_path, capsys):
    output = tmp_path / "shared.ome.zarr"
    for share in ("1/2", "0/2"):
        assert not output.exists()
        assert cli.main(command(brain, output, "--shard", share)) == 0
    assert "of others are not" in capsys.readouterr().out
    assert_same(brain, output)


def test_shares_that_run_at_the_same_time_make_the_whole(brain, tmp_path):
    output = tmp_path / "shared.ome.zarr"
    running = [process(command(brain, output, "--shard", share)) for share in ("0/2", "1/2")]
    for one in running:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors.decode()
    assert_same(brain, output)
    assert not list(tmp_path.glob(".*"))


def test_torchrun_shares_it_among_its_processes(brain, tmp_path):
    output = tmp_path / "torchrun.ome.zarr"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "nnunet_selma.cli",
            *command(brain, output),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("blocks of 32×32×32") == 2
    assert done.stdout.count("in 8 of 16 blocks") == 1  # one of them completes it
    assert_same(brain, output)


def test_a_cluster_that_loses_a_worker_makes_the_whole(brain, tmp_path):
    distributed = pytest.importorskip("distributed")
    output = tmp_path / "cluster.ome.zarr"
    staging = replace(brain, output=output).staging
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster:
        running = process(command(brain, output, "--scheduler", cluster.scheduler_address))
        while running.poll() is None and not list(staging.glob("blocks/*.json")):
            time.sleep(0.02)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors.decode()
    assert_same(brain, output)


def test_the_same_command_again_finds_it_complete(brain, capsys):
    assert cli.main(command(brain, brain.output)) == 0
    assert "complete already" in capsys.readouterr().out


def test_an_output_of_another_run_is_not_mixed_with_this_one(brain, tmp_path, capsys):
    assert cli.main(command(brain, brain.output, "-step_size", "0.8")) == 2
    assert "exists already" in capsys.readouterr().err
    output = tmp_path / "other.ome.zarr"
    running = process(command(brain, output))
    staging = replace(brain, output=output).staging
    while running.poll() is None and not list(staging.glob("blocks/*.json")):
        time.sleep(0.02)
    running.kill()
    running.wait()
    assert cli.main(command(brain, output, "-step_size", "0.8")) == 2
    assert "another step size (0.5 there, 0.8 now)" in capsys.readouterr().err
    assert cli.main(command(brain, output, "-step_size", "0.8", "--overwrite")) == 0
    assert read_json(replace(brain, output=output).record)["settings"]["model"]["step_size"] == 0.8


def test_a_full_disk_is_said_and_what_was_done_is_kept(brain, tmp_path, monkeypatch, capsys):
    output, written = tmp_path / "full.ome.zarr", iter(range(3))

    def full(*arguments):
        if next(written, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(output))
        write_box(*arguments)

    monkeypatch.setattr("nnunet_selma.prediction.block_prediction.write_box", full)
    assert cli.main(command(brain, output)) == 2
    assert "make room and run the command again" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.undo()
    assert cli.main(command(brain, output)) == 0
    assert_same(brain, output)


def test_numbers_that_are_none_are_named_by_their_slices(brain, tmp_path, capsys):
    voxels = open_volume(brain.inputs[0]).read().astype(np.float32)
    voxels[30, 5, 5] = np.nan
    own = replace(brain, inputs=(write_slices(tmp_path / "slices", voxels),))
    assert cli.main(command(own, tmp_path / "out.ome.zarr")) == 2
    assert "NaN or infinite values in slices 24 to 31" in capsys.readouterr().err
    assert not (tmp_path / "out.ome.zarr").exists()


def without(*names):
    """Plans, or their configuration, that lack something."""

    def spoil(folder):
        plans = read_json(folder / "plans.json")
        for name in names:
            plans.pop(name, None)
            plans["configurations"]["3d_fullres"].pop(name, None)
        write_json(folder / "plans.json", plans)

    return spoil


def saying(name, value):
    """Plans, or their configuration, with another value of an entry."""

    def spoil(folder):
        plans = read_json(folder / "plans.json")
        configuration = plans["configurations"]["3d_fullres"]
        (configuration if name in configuration else plans)[name] = value
        write_json(folder / "plans.json", plans)

    return spoil


def of_a_network_elsewhere(folder):
    plans = read_json(folder / "plans.json")
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "of_another_version.Network"
    write_json(folder / "plans.json", plans)


def cut_short(share):
    def spoil(folder):
        checkpoint = folder / "fold_0" / "checkpoint_final.pth"
        checkpoint.write_bytes(checkpoint.read_bytes()[: int(checkpoint.stat().st_size * share)])

    return spoil


def of_numbers_that_are_none(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for weights in checkpoint["network_weights"].values():
        weights.fill_(torch.nan)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: write_json(folder / "plans.json", {"plans_per_stage": {}}), "no plans of nnU-Net v2"),
        (without("foreground_intensity_properties_per_channel"), "foreground_intensity_properties_per_channel"),
        (without("resampling_fn_data", "normalization_schemes"), "without normalization_schemes, resampling_fn_data"),
        (of_a_network_elsewhere, "this nnU-Net cannot build the model"),
        (saying("preprocessor_name", "MyLogPreprocessor"), "has the preprocessor_name MyLogPreprocessor"),
        (saying("label_manager", "MyLabelManager"), "has the label_manager MyLabelManager"),
        (saying("image_reader_writer", "MyIO"), "has the image_reader_writer MyIO"),
        (cut_short(0), "copy it again"),
        (cut_short(0.5), "checkpoint"),
        (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").write_text("weights"), "copy it again"),
        (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").unlink(), "is missing"),
        (of_numbers_that_are_none, "fold_0/checkpoint_final.pth: holds numbers that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:Network class:UserWarning")
def test_a_model_that_is_none_is_refused(brain, tmp_path, capsys, spoil, said):
    model = write_model(tmp_path / "model")
    spoil(model.folder)
    assert cli.main(command(replace(brain, model=model), tmp_path / "out.ome.zarr")) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(model.folder) in error


def test_files_that_are_read_whole_must_fit_into_the_memory(brain, tmp_path, capsys):
    voxels = np.zeros((900, 512, 512), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "brain.nrrd"), useCompression=True)
    arguments = [
        "predict-volume",
        str(tmp_path / "brain.nrrd"),
        "-o",
        str(tmp_path / "out.ome.zarr"),
        "-m",
        str(brain.model.folder),
    ]
    assert cli.main([*arguments, "--max-memory", "1.4"]) == 2
    assert "save it as OME-Zarr, TIFF slices or NIfTI" in capsys.readouterr().err


def test_folds_are_those_that_are_trained(brain, tmp_path, capsys):
    model = write_model(tmp_path / "model", folds=2)
    assert cli.main(command(replace(brain, model=model), tmp_path / "both.ome.zarr")) == 0
    assert "fold 0, 1" in capsys.readouterr().out
    assert read_json(tmp_path / "both_segmentation.json")["settings"]["model"]["folds"] == ["0", "1"]


def test_folds_and_checkpoints_are_named_as_nnunet_names_them(brain, tmp_path, capsys):
    model = write_model(tmp_path / "model")
    out = ["-o", str(tmp_path / "out.ome.zarr"), "--spacing", "4,2,2"]
    start = ["predict-volume", str(brain.inputs[0]), *out]
    assert cli.main([*start, "-m", str(model.folder / "fold_0")]) == 2
    assert f"{model.folder}, and -f 0" in capsys.readouterr().err
    fold = model.folder / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    assert cli.main([*start, "-m", str(model.folder), "-f", "fold_0"]) == 2
    assert "give -chk checkpoint_best.pth" in capsys.readouterr().err
    assert cli.main([*start, "-m", str(model.folder), "-f", "fold_0", "-chk", "checkpoint_best.pth"]) == 0


def test_a_slice_that_cannot_be_read_is_named_and_what_was_done_is_kept(brain, tmp_path, capsys):
    slices = write_slices(tmp_path / "slices", open_volume(brain.inputs[0]).read())
    bad = slices / "z0040.tif"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    own = replace(brain, inputs=(slices,), output=tmp_path / "out.ome.zarr", max_memory=0.0012)
    arguments = command(own, own.output)
    assert cli.main(arguments) == 2
    assert "z0040.tif" in capsys.readouterr().err
    assert not own.output.exists()
    bad.write_bytes(whole)
    assert cli.main(arguments) == 0
    assert np.array_equal(segmentation(own), segmentation(brain))


def test_labels_go_into_an_input_that_is_an_ome_zarr(brain, tmp_path):
    import shutil

    own = tmp_path / "own.ome.zarr"
    shutil.copytree(brain.output, own)
    with pytest.raises(SelmaError, match="exists already"):
        predict_volume(replace(brain, inputs=(own,), output=own, spacing_um_zyx=None), Execution())
    beside = replace(brain, inputs=(own,), output=own, name="again", spacing_um_zyx=None)
    predict_volume(beside, Execution())
    assert np.array_equal(segmentation(beside), segmentation(brain))
    assert np.array_equal(segmentation(replace(brain, output=own)), segmentation(brain))


def test_a_voxel_size_that_is_given_is_that_of_the_finest_level(brain, tmp_path):
    voxels = open_volume(brain.inputs[0]).read()
    group = zarr.open_group(str(tmp_path / "in.ome.zarr"), mode="w", zarr_format=2)
    for level, factor in enumerate((1, 2)):
        group.create_array(str(level), data=voxels[::factor, ::factor, ::factor])
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]
    coarse = replace(brain, inputs=(tmp_path / "in.ome.zarr",), output=tmp_path / "out.ome.zarr", level=1)
    predict_volume(coarse, Execution())
    written = open_volume(coarse.output)
    assert (written.shape, written.spacing_um_zyx) == ((25, 30, 60), (8, 4, 4))


def test_nothing_but_earlier_results_is_overwritten(brain, tmp_path):
    slices = write_slices(tmp_path / "slices.zarr", open_volume(brain.inputs[0]).read()[:9])
    before = sorted(slices.iterdir())
    for output, inputs, said in (
        (slices, brain.inputs, "not overwritten"),
        (slices, (slices,), "no OME-Zarr image"),
        (tmp_path / "brain", brain.inputs, "call it brain.ome.zarr"),
        (tmp_path / "none" / "brain.zarr", brain.inputs, "no such folder"),
    ):
        with pytest.raises(SelmaError, match=said):
            predict_volume(replace(brain, output=output, inputs=inputs), Execution(overwrite=True))
    with pytest.raises(SelmaError, match="shares"):
        predict_volume(replace(brain, output=tmp_path / "b.zarr"), Execution(overwrite=True, share=(0, 2)))
    assert sorted(slices.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": 2}, "2 volume"),
        ({"inputs": 1, "channels": (0, 1)}, "one channel only"),
        ({"block": 48}, "power of two"),
        ({"name": "a/b"}, "--name"),
        ({"max_memory": 0.1, "block": None}, "takes about"),
        ({"spacing_um_zyx": None}, "--spacing"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(brain, tmp_path, change, said):
    more = {**change, "inputs": brain.inputs * change["inputs"]} if "inputs" in change else change
    content = plans() | {"original_median_spacing_after_transp": [4.0, 2.0, 2.0]}
    own = replace(brain, output=tmp_path / "out.ome.zarr", model=write_model(tmp_path / "model", content), **more)
    with pytest.raises(SelmaError, match=said):
        predict_volume(own, Execution())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_moment_of_the_end_leaves_what_the_next_call_completes(brain, tmp_path, monkeypatch, overwrite):
    """Every rename, every JSON and every removal of the end fails once, in turn, the last with a part of the folder gone."""
    output = tmp_path / "brain.ome.zarr"
    own = replace(brain, output=output, probabilities=overwrite)
    if overwrite:
        predict_volume(own, Execution())

    class Killed(Exception):
        pass

    for moment in range(50):
        calls = iter(range(moment))

        def limited(function, calls=calls):
            def run(*arguments, **options):
                if next(calls, None) is None:
                    if function.__name__ == "rmtree" and arguments[0].is_dir():
                        next(one for one in arguments[0].rglob("*") if one.is_file()).unlink()
                    raise Killed
                return function(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(finishing, "write_json", limited(finishing.write_json))
            patch.setattr(finishing, "fill_pyramid", limited(finishing.fill_pyramid))
            patch.setattr(finishing, "_move", limited(finishing._move))
            patch.setattr(finishing, "list_labels", limited(finishing.list_labels))
            patch.setattr(finishing.shutil, "rmtree", limited(finishing.shutil.rmtree))
            try:
                predict_volume(own, Execution(overwrite=overwrite and moment < 2))
            except Killed:
                continue
            break
    assert moment > 4
    assert_same(brain, output)
    assert read_json(own.record)["settings"] == own.as_json()
    assert (tmp_path / "brain_probabilities.ome.zarr").exists() == overwrite
    assert not list(tmp_path.glob(".*"))


def half_done(settings):
    """A run with one block that is predicted and not written yet."""
    run = start_run(settings, "cpu", overwrite=False).run
    for index in range(len(run.slabs)):
        list(scan_slab(SlabToRead(run.folder, run.id, index)))
    predictor = open_predictor(run.folder, run.id, "cpu")
    output, _ = predictor.predict(predictor.read(0), None)
    return predictor, output


def test_a_process_that_outlives_its_run_writes_nothing_into_the_next_one(brain, tmp_path):
    settings = resolve_output(replace(brain, output=tmp_path / "brain.ome.zarr"))
    predictor, block = half_done(settings)
    other = replace(settings, model=write_model(tmp_path / "other", seed=9))
    new = start_run(other, "cpu", overwrite=True).run
    with pytest.raises(SelmaError, match="another process has completed or replaced this run"):
        predictor.write(block)
    with pytest.raises(SelmaError, match="another process has completed or replaced this run"):
        list(scan_slab(SlabToRead(new.folder, predictor.run.id, 0)))
    assert len(new.blocks_to_do()) == len(new.blocks)
    assert not open_volume(new.labels).read().any()


def test_a_process_that_comes_too_late_leaves_the_complete_result_alone(brain, tmp_path):
    settings = resolve_output(replace(brain, output=tmp_path / "brain.ome.zarr"))
    predictor, block = half_done(settings)
    predict_volume(settings, Execution())
    with pytest.raises(SelmaError, match="another process has completed or replaced this run"):
        predictor.write(block)
    assert not settings.staging.exists()
    assert_same(brain, settings.output)


def test_overwriting_goes_on_where_it_was_interrupted(brain, tmp_path, monkeypatch):
    settings = replace(brain, output=tmp_path / "brain.ome.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "complete_run", lambda *_, **__: 1 / 0)
        for overwrite in (False, True):
            with pytest.raises(ZeroDivisionError):
                predict_volume(settings, Execution(overwrite=overwrite))
    known = read_json(settings.staging / "run.json")["id"]
    stamp = max(one.stat().st_mtime_ns for one in settings.staging.glob("blocks/*"))
    again = start_run(resolve_output(settings), "cpu", overwrite=True).run
    assert again.id == known
    assert max(one.stat().st_mtime_ns for one in settings.staging.glob("blocks/*")) == stamp
    predict_volume(settings, Execution(overwrite=True))
    assert_same(brain, settings.output)


def test_what_a_kill_left_of_a_folder_is_swept(brain, tmp_path):
    settings = replace(brain, output=tmp_path / "brain.ome.zarr")
    left = [settings.staging.with_name(f"{settings.staging.name}.{name}") for name in ("abc.done", "old", "young")]
    for folder in left:
        folder.mkdir()
    os.utime(left[1], (0, 0))
    predict_volume(settings, Execution())
    assert [folder.exists() for folder in left] == [False, False, True]  # the last may be another process's


def test_a_channel_of_a_file_with_several(brain, tmp_path):
    voxels = open_volume(brain.inputs[0]).read()
    both = tmp_path / "both.tif"
    tifffile.imwrite(both, np.stack([voxels[::-1], voxels], axis=1), imagej=True, metadata={"axes": "ZCYX"})
    own = replace(brain, inputs=(both,), output=tmp_path / "own.ome.zarr", channels=(1,))
    predict_volume(own, Execution())
    assert np.array_equal(segmentation(own), segmentation(brain))


def test_probabilities_slices_and_labels_alone(brain, tmp_path):
    alone = replace(brain, output=tmp_path / "alone.ome.zarr", probabilities=True, raw=False, version="0.4")
    predict_volume(alone, Execution())
    assert not (tmp_path / "alone_segmentation").exists()
    predict_volume(alone, Execution(also=("tiff",)))  # complete already, but for these
    labels = segmentation(alone)
    assert np.array_equal(labels, segmentation(brain))
    probable = open_volume(tmp_path / "alone_probabilities.ome.zarr").read()
    clear = np.abs(probable.astype(int) - 127) > 2
    assert clear.any()
    assert np.array_equal((probable > 127)[clear], labels[clear] == 1)
    slices = open_volume(tmp_path / "alone_segmentation")
    assert np.array_equal(slices.read(), labels)
    with pytest.raises(SelmaError):
        open_volume(alone.output)
