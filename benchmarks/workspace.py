"""Trainers on plans made up for measuring, in a workspace of their own."""

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plans import plans
from nnunet_selma.running.json_files import write_json

DATASET = {
    "channel_names": {"0": "light sheet"},
    "labels": {"background": 0, "structure": 1},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}
NAME = "Dataset510_benchmark"
_FOLDERS = ("raw", "preprocessed", "results")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The part of nnU-Net's plans that decides what a step costs."""

    patch: tuple[int, ...]
    features: tuple[int, ...]
    batch: int
    flat_stages: int = 0
    """Stages that leave the first axis alone (kernel 1×3×3, stride 1×2×2), as nnU-Net makes them for thick slices."""
    residual: bool = False

    def content(self, settings: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """A plans dictionary with one configuration, 3d_fullres (2d where the patch is flat)."""
        axes, stages = len(self.patch), len(self.features)
        content = plans("2d, 256×256" if axes == 2 else "small", residual=self.residual, batch=self.batch)
        (own,) = content["configurations"].values()
        own["patch_size"], own["data_identifier"] = list(self.patch), "benchmark"
        flat = [i < self.flat_stages for i in range(stages)]
        blocks = (
            ("n_blocks_per_stage", 2, "n_conv_per_stage_decoder", 1)
            if self.residual
            else ("n_conv_per_stage", 2, "n_conv_per_stage_decoder", 2)
        )
        own["architecture"]["arch_kwargs"].update(
            {
                "n_stages": stages,
                "features_per_stage": list(self.features),
                "kernel_sizes": [[1 if thin and axis == 0 else 3 for axis in range(axes)] for thin in flat],
                "strides": [
                    [1] * axes,
                    *([1 if thin and axis == 0 else 2 for axis in range(axes)] for thin in flat[1:]),
                ],
                blocks[0]: [blocks[1]] * stages,
                blocks[2]: [blocks[3]] * (stages - 1),
            }
        )
        return {**content, "dataset_name": NAME, "selma": settings or {}}

    @property
    def title(self) -> str:
        """How the plan is called in a table."""
        edges = set(self.patch)
        patch = f"{self.patch[0]}³" if len(edges) == 1 and len(self.patch) == 3 else "×".join(map(str, self.patch))
        return f"{patch}, features {', '.join(map(str, self.features))}, batch {self.batch}"


def fresh_workspace() -> Path:
    """Folders for nnU-Net, also in the environment; removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="selma_benchmark_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name in _FOLDERS:
        (root / name).mkdir()
    use(root)
    return root


def use(root: Path) -> None:
    """Let nnU-Net, and `nnunet-selma`, work in a workspace."""
    for name in _FOLDERS:
        os.environ[f"nnUNet_{name}"] = str(root / name)


def trainer(kind: str, plan: Plan, *, cases: int = 1, settings: dict[str, dict[str, Any]] | None = None) -> Any:
    """An initialised trainer on the CPU: "stock" is nnU-Net's own, "finetune" and "pretrain" are ours.

    nnUNetv2_train gives PyTorch all cores before it makes a trainer; so does this.
    """
    root = fresh_workspace()
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer
    from nnunet_selma.trainers.ssl import SelmaSSLTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    folder = root / "preprocessed" / NAME
    (folder / "benchmark").mkdir(parents=True)
    write_json(folder / "dataset_fingerprint.json", {})
    rng, edge = np.random.default_rng(0), 64
    for number in range(cases):
        image = rng.normal(size=(1, edge, edge, edge)).astype(np.float32)
        label = (image > 1.5).astype(np.int8)
        properties = {"class_locations": {1: np.argwhere(label > 0)[:10_000]}, "spacing": [1.0] * 3}
        block = (1, *(min(32, edge),) * 3)
        nnUNetDatasetBlosc2.save_case(
            image, label, properties, str(folder / "benchmark" / f"c{number}"), chunks=block, blocks=block
        )
    classes = {"stock": nnUNetTrainer, "finetune": SelmaFinetuneTrainer, "pretrain": SelmaSSLTrainer}
    content = {**plan.content(settings), "continue_training": False}
    one = classes[kind](content, next(iter(content["configurations"])), "all", DATASET, torch.device("cpu"))
    one.initialize()
    one.network.train()
    return one


def batch(one: Any, plan: Plan) -> dict[str, Any]:
    """A batch as nnU-Net's loader makes it, targets for deep supervision included."""
    import torch

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(plan.batch, 1, *plan.patch, generator=generator)
    label = (data > 1.5).float()
    scales: Sequence[Sequence[float]] | None = one._get_deep_supervision_scales()
    if scales is None:
        return {"data": data, "target": label.short()}
    shapes = [
        [max(1, math.floor(edge * scale)) for edge, scale in zip(plan.patch, one_scale, strict=True)]
        for one_scale in scales
    ]
    return {"data": data, "target": [torch.nn.functional.interpolate(label, shape).short() for shape in shapes]}
