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
import tifffile

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json
from nnunet_selma.volume_prediction import Execution, VolumePrediction, finishing, predict_volume
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from tests.plans import plans
from tests.volume_prediction.models import texture, write_model

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
        inputs=(write_slices(root / "slices", voxels),), output=root / "whole.ome.zarr", model=write_model(root / "model"),
        spacing_um_zyx=(4.0, 2.0, 2.0), block=32,
    )  # fmt: skip
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
    record, skipped = predict_volume(everything, Execution()), read_json(brain.record)
    assert skipped["result"]["tissue share"] < 0.8
    assert skipped["result"]["tiles"] < 0.8 * record["result"]["tiles"]
    assert skipped["result"]["blocks without tissue"] == 2 * 2 * 2
    differ = (segmentation(brain) != segmentation(everything)).any(axis=(0, 1))
    assert not differ[: 3 * 16].any()  # the last cell with tissue ends here
    assert differ[-16:].any()


def test_a_mask_says_where_to_predict(brain, tmp_path):
    mask = np.zeros((10, 12, 24), np.uint8)
    mask[:5] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    masked = replace(brain, output=tmp_path / "masked.ome.zarr", mask=tmp_path / "mask.tif")
    predict_volume(masked, Execution())
    labels = segmentation(masked)
    assert np.array_equal(labels[:25, :, :48], segmentation(brain)[:25, :, :48])
    assert not labels[32:].any()  # the mask's half ends within a cell of 8 slices
    mask[3:] = 0  # ends at slice 15: tiles of 16 slices reach beyond, in the same block
    tifffile.imwrite(tmp_path / "less.tif", mask)
    less = replace(brain, output=tmp_path / "less.ome.zarr", mask=tmp_path / "less.tif")
    predict_volume(less, Execution())
    assert segmentation(less)[:16].any()
    assert not segmentation(less)[16:].any()


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
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nnunet_selma.cli",
            *command(brain, output),
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
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

    monkeypatch.setattr("nnunet_selma.volume_prediction.blocks.write_box", full)
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
    assert "NaN or infinite values in slices 0 to 49" in capsys.readouterr().err
    assert not (tmp_path / "out.ome.zarr").exists()


def test_plans_of_another_version_are_refused(brain, tmp_path, capsys):
    model = write_model(tmp_path / "model")
    (model.folder / "plans.json").write_text('{"plans_per_stage": {}}')
    assert cli.main(command(replace(brain, model=model), tmp_path / "out.ome.zarr")) == 2
    assert "no plans of nnU-Net v2" in capsys.readouterr().err


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
        predict_volume(replace(brain, output=tmp_path / "b.zarr"), Execution(overwrite=True, shard=(0, 2)))
    assert sorted(slices.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": 2}, "2 volume"), ({"inputs": 1, "channels": (0, 1)}, "one channel only"), ({"block": 48}, "power of two"), ({"name": "a/b"}, "--name"),
        ({"max_memory": 0.1, "block": None}, "takes about"), ({"spacing_um_zyx": None}, "--spacing"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_written(brain, tmp_path, change, said):
    more = {**change, "inputs": brain.inputs * change["inputs"]} if "inputs" in change else change
    content = plans() | {"original_median_spacing_after_transp": [4.0, 2.0, 2.0]}
    own = replace(brain, output=tmp_path / "out.ome.zarr", model=write_model(tmp_path / "model", content), **more)
    with pytest.raises(SelmaError, match=said):
        predict_volume(own, Execution())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_at_any_moment_of_the_end_leaves_what_the_next_call_completes(brain, tmp_path, monkeypatch):
    """Every rename and every JSON of the end fails once, in turn."""
    output = tmp_path / "brain.ome.zarr"
    own = replace(brain, output=output)

    class Killed(Exception):
        pass

    for moment in range(50):
        calls = iter(range(moment))

        def limited(function, calls=calls):
            def run(*arguments, **options):
                if next(calls, None) is None:
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
                predict_volume(own, Execution())
            except Killed:
                continue
            break
    assert moment > 4
    assert_same(brain, output)
    assert read_json(own.record)["settings"] == own.as_json()
    assert not list(tmp_path.glob(".*"))


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
    predict_volume(alone, Execution(also_tiff=True))  # complete already, but for these
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
