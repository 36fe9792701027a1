"""The commands a user types, on a GPU; and two GPUs where there are two."""

import os
import subprocess

import pytest
import torch
from torch import multiprocessing

from nnunet_selma.nnunet import commands
from tests.pretraining.test_processes import assert_as_one_batch, contrast

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def _usual():
    """The environment in which nnU-Net compiles on a GPU, as for a user."""
    return {name: value for name, value in os.environ.items() if name != "nnUNet_compile"}


def failure(*command, **environment):
    """The end of what a command prints as errors; None if it ends well."""
    done = subprocess.run(
        [commands.program(command[0]), *command[1:]],
        env={**_usual(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr[-3000:]


def test_demo_recipe_router_and_an_arm_of_the_challenge(device, row, tmp_path):
    if device.type == "cpu":
        pytest.skip("the pipeline tests run these commands on a CPU")
    assert failure("nnunet-selma", "demo", "-o", str(tmp_path / "demo"), "--device", "cuda") is None
    row("nnunet-selma demo --device cuda", "ended well", "ends well")
    environment = commands.workspace_environment(tmp_path / "demo" / "workspace")
    assert (
        failure("nnunet-selma", "recipe", "run", "ours", "--scale", "tiny", "--device", "cuda", **environment) is None
    )
    row("nnunet-selma recipe run ours --scale tiny --device cuda", "ended well", "ends well")
    router = ("train-router", "-d", "510", "-o", str(tmp_path / "router.pt"), "--steps", "30", "--patch", "32")
    assert failure("nnunet-selma", *router, "--device", "cuda", **environment) is None
    row("nnunet-selma train-router --device cuda", "ended well", "ends well")
    if torch.cuda.device_count() >= 2:
        plans = next((tmp_path / "demo" / "workspace").glob("nnUNet_preprocessed/Dataset500_*/*from510*.json")).stem
        training = ("nnUNetv2_train", "500", "3d_fullres", "all", "-tr", "SelmaSSLTrainer_SimCLR", "-p", plans)
        assert failure(*training, "-num_gpus", "2", **environment) is None
        row("nnUNetv2_train -tr SelmaSSLTrainer_SimCLR -num_gpus 2", "ended well", "ends well")
    short = ("--set", "pretraining.epochs=1", "finetuning.epochs=1")
    challenge = ("challenge", "-o", str(tmp_path / "challenge"), "--recipes", "ours", "--seeds", "1")
    assert failure("nnunet-selma", *challenge, "--device", "cuda", *short) is None
    row("nnunet-selma challenge --recipes ours --device cuda", "ended well", "ends well")


def work(rank, folder):
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(contrast(rank, f"cuda:{rank}"), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_gpus_contrast_as_one_batch(device, row, tmp_path):
    if device.type == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    assert_as_one_batch([torch.load(tmp_path / f"{rank}.pt", map_location="cpu") for rank in range(2)])
    row("two GPUs, contrast over both", "as one batch", "as one batch")
