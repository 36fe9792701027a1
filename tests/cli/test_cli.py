"""Bad input, as a user meets it: one sentence that names the file, exit code 2, no traceback, nothing half-written."""

import errno
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from nnunet_selma import cli
from nnunet_selma.cli import predict_volume
from nnunet_selma.running.json_files import write_json
from tests.conftest import REPOSITORY, write_image, write_patch
from tests.plans import plans

SHAPE = (8, 9, 10)


def image(rng):
    return rng.integers(0, 65535, SHAPE, dtype=np.uint16)


def nothing(source, rng):
    """No such folder."""


def empty(source, rng):
    source.mkdir()


def raw_without_gt(source, rng):
    write_image(source / "AD_plaques/raw/patchvolume_000_0000.nii.gz", image(rng))


def gt_without_raw(source, rng):
    write_image(source / "AD_plaques/gt/patchvolume_000.nii.gz", image(rng))


def shape_mismatch(source, rng):
    write_patch(source, "AD_plaques", 0, rng, image=image(rng), label=np.ones((8, 9, 11), np.uint8))


def four_axes(source, rng):
    write_patch(source, "AD_plaques", 0, rng, image=np.stack([image(rng)] * 2))


def not_a_number(source, rng):
    write_patch(source, "AD_plaques", 0, rng, shape=SHAPE, image=np.full(SHAPE, np.nan))


def infinite(source, rng):
    write_patch(source, "AD_plaques", 0, rng, shape=SHAPE, image=np.full(SHAPE, np.inf, np.float32))


def truncated_nifti(source, rng):
    write_patch(source, "AD_plaques", 0, rng, shape=(30, 30, 30))
    path = source / "AD_plaques/raw/patchvolume_000_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:20000])


def stack(source, rng, **options):
    folder = source / "cell_nucleus" / "sample1" / "C01"
    folder.mkdir(parents=True)
    for z in range(12):
        tifffile.imwrite(folder / f"i_Z{z}.tif", rng.integers(0, 65535, (16, 16), dtype=np.uint16), **options)
    return folder


def truncated_tiff(source, rng):
    path = stack(source, rng) / "i_Z7.tif"
    path.write_bytes(path.read_bytes()[:300])


def missing_slice(source, rng):
    (stack(source, rng) / "i_Z7.tif").unlink()


def colour_tiff(source, rng):
    tifffile.imwrite(stack(source, rng) / "i_Z7.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")


def not_a_number_in_a_volume(source, rng):
    voxels = rng.random((16, 16, 16)).astype(np.float32)
    voxels[:, 0, 0] = np.nan
    write_image(source / "cell_nucleus" / "v.nii.gz", voxels)


ANNOTATED = {
    nothing: "in: there is no such",
    empty: "no annotated patches",
    raw_without_gt: "patchvolume_000_0000.nii.gz: no ground truth",
    gt_without_raw: "patchvolume_000.nii.gz: no raw",
    shape_mismatch: "patchvolume_000.nii.gz has 8 × 9 × 11",
    four_axes: "patchvolume_000_0000.nii.gz: has the shape",
    not_a_number: "patchvolume_000_0000.nii.gz: holds NaN",
    infinite: "patchvolume_000_0000.nii.gz: holds NaN or infinite",
    truncated_nifti: "patchvolume_000_0000.nii.gz: cannot be read",
}
UNANNOTATED = {
    nothing: "in: there is no such",
    empty: "no volumes",
    truncated_tiff: "i_Z7.tif: ",
    missing_slice: "after i_Z6.tif (number 7)",
    colour_tiff: "i_Z7.tif: is a colour image",
    not_a_number_in_a_volume: "v.nii.gz: holds NaN",
}
CASES = [("annotated", *item) for item in ANNOTATED.items()] + [("unannotated", *item) for item in UNANNOTATED.items()]


def ended(capsys, arguments):
    """Exit code of a command, and the lines on the error stream that begin as its sentences do, or as a traceback does."""
    code = cli.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    return code, [line for line in lines if line.startswith(("nnunet-selma: ", "Traceback"))]


@pytest.mark.parametrize(
    ("kind", "prepare", "match"), CASES, ids=[f"{kind} {prepare.__name__}" for kind, prepare, _ in CASES]
)
def test_bad_input(kind, prepare, match, tmp_path, rng, folders, capsys):
    prepare(tmp_path / "in", rng)
    tile = ["--tile", "8"] if kind == "unannotated" else []
    code, (sentence,) = ended(capsys, ["convert", kind, str(tmp_path / "in"), "--spacing", "voxel", *tile])
    assert code == 2
    assert match in sentence
    assert not list(folders.raw.glob("Dataset*"))
    assert not list(folders.preprocessed.glob("Dataset*"))
    if prepare is not nothing:
        capsys.readouterr()
        assert cli.main(["inspect", str(tmp_path / "in")]) == 1


def test_a_taken_id(tmp_path, rng, folders, capsys):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng)
    (folders.raw / "Dataset510_Other").mkdir()
    code, (sentence,) = ended(capsys, ["convert", "annotated", str(tmp_path / "in")])
    assert code == 2
    assert "id 510 is taken by" in sentence


def test_a_full_disk(tmp_path, rng, folders, capsys, monkeypatch):
    write_patch(tmp_path / "in", "AD_plaques", 0, rng)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr("nnunet_selma.running.whole_files.os.replace", full)
    code, (sentence,) = ended(capsys, ["convert", "annotated", str(tmp_path / "in")])
    assert code == 2
    assert "make room" in sentence
    assert not list(folders.raw.glob("Dataset*"))


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "annotated", "x"],
        ["plan-pretraining", "-s", "1", "-t", "2"],
        ["settings", "-d", "1"],
        ["plan-small", "-d", "1"],
    ],
)
def test_variables_that_are_not_set(command, capsys, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    code, (sentence,) = ended(capsys, command)
    assert code == 2
    assert 'eval "$(nnunet-selma env FOLDER)"' in sentence


@pytest.mark.parametrize("option", [["--tile", "0"], ["--tiles-per-volume", "0"], ["--min-foreground", "2"]])
def test_numbers_that_give_no_tiles(option, tmp_path, rng, folders, capsys):
    stack(tmp_path / "in", rng)
    code, (sentence,) = ended(capsys, ["convert", "unannotated", str(tmp_path / "in"), *option])
    assert code == 2
    assert "at least 1 voxel" in sentence


def test_a_demo_touches_no_folder_that_is_not_its_own(tmp_path, capsys):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "mine.txt").write_text("mine")
    code, (sentence,) = ended(capsys, ["demo", "-o", str(tmp_path)])
    assert code == 2
    assert "was not made by a demo" in sentence
    assert (tmp_path / "test" / "mine.txt").read_text() == "mine"


def test_damaged_plans_are_named(folders, capsys):
    folder = folders.preprocessed / "Dataset510_A"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text("{")
    code, (sentence,) = ended(capsys, ["settings", "-d", "510"])
    assert code == 2
    assert "nnUNetPlans.json: is no valid JSON" in sentence


def test_an_unknown_structure_on_the_command_line(tmp_path, capsys):
    code, (sentence,) = ended(capsys, ["convert", "annotated", str(tmp_path), "--structures", "kidney"])
    assert code == 2
    assert "unknown structure 'kidney'" in sentence


def test_environment_lines_can_be_evaluated(tmp_path):
    line = (
        f'eval "$({sys.executable} -m nnunet_selma.cli env "{tmp_path}/a b")" && echo "$nnUNet_raw|$nnUNet_extTrainer"'
    )
    printed = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.strip()
    raw, trainers = printed.split("|")
    assert raw == f"{tmp_path}/a b/nnUNet_raw"
    assert os.path.isdir(raw)
    assert os.path.isfile(f"{trainers}/nnunet_selma_trainers.py")


def test_recipes_are_the_same_code(tmp_path, rng, folders, monkeypatch):
    write_patch(tmp_path / "in", "shannel_cells", 0, rng)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "in"), "-d", "77"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / "dataset_conversion" / "Dataset510_SELMA3D_annotated.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert (folders.raw / "Dataset077_SELMA3D" / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "preprocessed"], "--to preprocessed needs --plans-from"),
        (["--plans-from", "510"], "--plans-from is for --to preprocessed"),
    ],
)
def test_a_store_and_its_plans_belong_together(arguments, sentence, tmp_path, folders, capsys):
    assert cli.main(["convert", "unannotated", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_store_ends_with_the_command_that_trains_on_it(tmp_path, folders, capsys, rng):
    write_image(tmp_path / "in" / "brain.nii.gz", (1000 + 100 * rng.random((20, 40, 40))).astype(np.uint16))
    (folders.preprocessed / "Dataset510_A").mkdir()
    write_json(folders.preprocessed / "Dataset510_A" / "nnUNetPlans.json", plans())
    store = ["--to", "preprocessed", "--plans-from", "510", "--tile", "16", "--workers", "1"]
    assert (
        cli.main(
            ["convert", "unannotated", str(tmp_path / "in"), "--structure", "microglia", "--spacing", "voxel", *store]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "next: nnUNetv2_train 500 3d_fullres all -tr SelmaSSLTrainer -p nnUNetPlans_from510_store" in said
    assert str(folders.preprocessed / "Dataset500_SELMA3Dunlabelled") in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "command",
    [
        ("demo", "-o", "OUT"),
        ("recipe", "run", "ours"),
        ("challenge", "-o", "OUT"),
        ("train-router", "-d", "510", "-o", "OUT"),
        ("predict-volume", "brain.tif", "-o", "OUT", "-m", "model"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(command, folders, tmp_path, capsys):
    (folders.raw / "Dataset510_A").mkdir()
    out = tmp_path / "out.ome.zarr"
    assert cli.main([*(str(out) if word == "OUT" else word for word in command), "--device", "cuda"]) == 2
    assert "finds none here; take --device cpu" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
@pytest.mark.parametrize(
    "command",
    [
        ("demo", "-o", "OUT", "--data", "nowhere"),
        ("recipe", "run", "ours"),
        ("challenge", "-o", "OUT", "--data", "nowhere"),
        ("train-router", "-d", "510", "-o", "OUT"),
        ("predict-routed", "-i", "nowhere", "-o", "OUT", "--router", "nowhere", "--model", "other=nowhere"),
        ("predict-volume", "brain.tif", "-o", "OUT", "-m", "model"),
        ("predict-volume", "brain.tif", "-o", "OUT", "-m", "model", "--scheduler", "local:2"),
    ],
)
def test_every_command_computes_on_the_best_device_and_says_which(
    command, device, folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    (folders.raw / "Dataset510_A").mkdir()
    out = tmp_path / "out.ome.zarr"
    monkeypatch.chdir(tmp_path)
    # each ends at the first file that is missing
    assert cli.main([str(out) if word == "OUT" else word for word in command]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("device: ")] == [f"device: {device}"]


@pytest.mark.parametrize(
    ("name", "scheduler", "expected"),
    [(None, None, "cuda:1"), ("cuda", None, "cuda:1"), ("cpu", None, "cpu"), (None, "local:2", "cuda")],
)
def test_each_process_of_torchrun_takes_a_gpu_of_its_own(name, scheduler, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert predict_volume._device(name, scheduler) == expected


def test_workers_of_a_cluster_may_have_a_gpu_that_this_machine_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert predict_volume._device("cuda", "tcp://host:8786") == "cuda"
