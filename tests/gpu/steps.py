"""Trainers at the size of a check, batches, and what their steps cost."""

import gc
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_selma import trainers
from tests.measures import saved_bytes
from tests.plans import plans
from tests.trainers.test_trainers import DATASET

PRETRAININGS = [name for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")]
FINETUNINGS = [name for name in trainers.TRAINERS if name not in PRETRAININGS]


def gpu_plans(size, patch=None):
    """nnU-Net's plain network at these features; every stage after the first halves the patch."""
    content, stages = plans(), len(size.features)
    own = content["configurations"]["3d_fullres"]
    own["patch_size"], own["batch_size"] = [patch or size.patch] * 3, size.batch
    own["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(size.features),
        "kernel_sizes": [[3] * 3] * stages,
        "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return content


def made(name, folders, device, size, patch=None, **settings):
    """A trainer that is ready for its first step; of nnU-Net's own name, nnU-Net's."""
    content = {**gpu_plans(size, patch), "continue_training": False}
    if name != "nnUNetTrainer":
        run = {"epochs": 10, "iterations_per_epoch": size.steps, "seed": 0}
        section = "pretraining" if name in PRETRAININGS else "finetuning"
        more = {"cpu": {"fast_layers": False}, "distillation": {"prototypes": 512}, **settings}
        content["selma"] = {**more, section: {**run, **more.get(section, {})}}
    gc.collect()
    torch._dynamo.reset()
    kind = nnUNetTrainer if name == "nnUNetTrainer" else getattr(trainers, name)
    folder = folders.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.b2nd").touch()
    one = kind(content, "3d_fullres", 0, DATASET, device)
    one.initialize()
    begin(one, 0)
    return one


def begin(one, epoch):
    """Start an epoch of a trainer."""
    one.current_epoch = epoch
    one.on_epoch_start()
    one.on_train_epoch_start()


def batch(size, seed=0, patch=None):
    """Patches with bright blobs, and labels of them for all outputs; on the CPU, as nnU-Net loads them."""
    generator = torch.Generator().manual_seed(seed)
    edge = patch or size.patch
    coarse = (torch.rand(size.batch, 1, *[edge // 4] * 3, generator=generator) < 0.05).float()
    label = torch.nn.functional.interpolate(coarse, scale_factor=4)
    patches = torch.randn(label.shape, generator=generator) + 3 * label
    targets = [label[..., :: 2**n, :: 2**n, :: 2**n] for n in range(len(size.features) - 1)]
    return {"data": patches, "target": targets, "keys": ["cfos_neuron_001", "blood_vessel_002"][: size.batch]}


def seconds(one, size):
    """Seconds of a step, the mean of many."""
    given = batch(size)
    for _ in range(3):
        one.train_step(given)
    wait(one.device)
    start = time.perf_counter()
    for _ in range(size.steps):
        one.train_step(given)
    wait(one.device)
    return (time.perf_counter() - start) / size.steps


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def bytes_of_step(one, given):
    """The most memory of a step on a GPU; what autograd keeps of it on a CPU."""
    if one.device.type == "cpu":
        return saved_bytes(lambda: one.train_step(given))
    one.train_step(given)
    torch.cuda.reset_peak_memory_stats()
    one.train_step(given)
    wait(one.device)
    return torch.cuda.max_memory_allocated()
