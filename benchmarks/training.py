"""Training steps on a CPU: ours against nnU-Net's own, on several plans."""

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.pairs import Comparison, Measure, Side
from benchmarks.workspace import Plan, batch, trainer

DEMO = Plan(patch=(32, 32, 32), features=(16, 32, 64), batch=2)
LARGER = Plan(patch=(48, 48, 48), features=(16, 32, 64, 128), batch=2)
OTHERS = {
    "thick slices": Plan(patch=(16, 64, 64), features=(16, 32, 64, 128), batch=2, flat_stages=2),
    "residual encoder": Plan(patch=(32, 32, 32), features=(16, 32, 64), batch=2, residual=True),
    "two-dimensional": Plan(patch=(128, 128), features=(16, 32, 64, 128), batch=8),
}
TINY = Plan(patch=(16, 16, 16), features=(4, 4, 4), batch=1)
_INSTRUCTIONS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("", "", {}),
    ("_avx2", ", AVX2 instructions only", {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
)
"""Suffix of a name, words for the table, and environment."""
_PINNED = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "nnUNet_n_proc_DA": "0"}
_OFF = {"cpu": {"fast_layers": False, "keep_memory": False}}


def timed(step: Callable[[], object], steps: int = 3) -> Measure:
    """Seconds of a step, the mean of a few, after as many that are not counted."""
    for _ in range(steps):
        step()

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    return measure


def steps(kind: str, plan: Plan, settings: dict[str, dict[str, Any]] | None = None, count: int = 3) -> Measure:
    """Seconds of a training step on a batch that is there already."""
    one = trainer(kind, plan, settings=settings)
    patches = batch(one, plan)
    if kind == "pretrain":
        one.pretext.reseed(0)
    return timed(lambda: one.train_step(patches), count)


def bare_steps(plan: Plan, count: int = 3) -> Measure:
    """Seconds of forward, backward and optimiser step of the network that `SelmaSSLTrainer` trains, and nothing else."""
    one = trainer("pretrain", plan)
    data = batch(one, plan)["data"]

    def step() -> None:
        one.optimizer.zero_grad(set_to_none=True)
        one.network(data).square().mean().backward()
        one.optimizer.step()

    return timed(step, count)


def convolutions(plan: Plan) -> Measure:
    """Seconds of the convolutions of a step, forward and backward, one after another and nothing else: no step can be faster."""
    import torch

    from nnunet_selma.trainers.fast_layers import FastConv3d

    one = trainer("finetune", plan)
    seen: list[tuple[FastConv3d, torch.Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs[0].detach())))
        for layer in one.network.modules()
        if isinstance(layer, FastConv3d)
    ]
    one.network(batch(one, plan)["data"])
    for hook in hooks:
        hook.remove()
    # the first layer's input is the image, which needs no gradient
    work = [
        (layer, patches.requires_grad_(number > 0), torch.randn_like(layer(patches)))
        for number, (layer, patches) in enumerate(seen)
    ]

    def step() -> None:
        for layer, patches, gradient in work:
            layer(patches).backward(gradient)

    return timed(step)


def loaded_steps(kind: str, plan: Plan) -> Measure:
    """Seconds of a training step with its batch loaded and augmented, in as many processes and threads as the trainer starts."""
    one = trainer(kind, plan, cases=4)
    one.disable_checkpointing = True
    one.dataloader_train, one.dataloader_val = one.get_dataloaders()
    return timed(lambda: one.train_step(next(one.dataloader_train)), steps=12)


def comparisons(quick: bool = False) -> list[Comparison]:
    """All of them; quick ones are too small to tell anything."""
    found = []
    for plan, name in ((DEMO, "demo_plan"), (LARGER, "48_plan")):
        for suffix, instructions, environment in _INSTRUCTIONS:
            found.append(
                _step(f"step_{name}{suffix}", f"{plan.title}{instructions}", plan, 2.0, "stock", {}, environment)
            )
    found.append(_step("step_pretraining", f"pretraining, {DEMO.title}", DEMO, 1.0, "pretrain", _OFF, {}))
    found += [
        _step(f"step_{name.replace(' ', '_')}", f"{name}: {plan.title}", plan, 1.0, "stock", {}, {})
        for name, plan in OTHERS.items()
    ]
    unpinned = dict.fromkeys(("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"))
    found.append(
        Comparison(
            name="loaded_steps",
            what=f"steps with loading and augmentation: {DEMO.title}",
            target=1.0,
            ours=Side(
                label="SelmaFinetuneTrainer, its own threads and processes",
                start=loaded_steps,
                arguments={"kind": "finetune", "plan": DEMO},
                environment=unpinned,
            ),
            other=Side(
                label="nnUNetTrainer, its own threads and processes",
                start=loaded_steps,
                arguments={"kind": "stock", "plan": DEMO},
                environment=unpinned,
            ),
        )
    )
    for plan, name in ((DEMO, "demo_plan"), (LARGER, "48_plan")):
        for suffix, instructions, environment in _INSTRUCTIONS:
            pinned = {**_PINNED, **environment}
            found.append(
                Comparison(
                    name=f"floor_{name}{suffix}",
                    what=f"how far a step could go: {plan.title}{instructions}",
                    target=0.0,
                    ours=Side(
                        label="its convolutions alone", start=convolutions, arguments={"plan": plan}, environment=pinned
                    ),
                    other=Side(
                        label="SelmaFinetuneTrainer's whole step",
                        start=steps,
                        arguments={"kind": "finetune", "plan": plan},
                        environment=pinned,
                    ),
                )
            )
        found.append(
            Comparison(
                name=f"overhead_{name}",
                what=f"a whole pretraining step: {plan.title}",
                target=1 / 1.05,
                ours=Side(
                    label="SelmaSSLTrainer",
                    start=steps,
                    arguments={"kind": "pretrain", "plan": plan, "count": 10},
                    environment=_PINNED,
                ),
                other=Side(
                    label="its network alone: forward, backward, optimiser",
                    start=bare_steps,
                    arguments={"plan": plan, "count": 10},
                    environment=_PINNED,
                ),
            )
        )
    return [_tiny(one) for one in found] if quick else found


def _step(
    name: str, what: str, plan: Plan, target: float, against: str, settings: dict[str, Any], environment: dict[str, str]
) -> Comparison:
    kind = "pretrain" if against == "pretrain" else "finetune"
    labels = {"stock": "nnUNetTrainer", "pretrain": "SelmaSSLTrainer with PyTorch's layers"}
    return Comparison(
        name=name,
        what=f"training step: {what}",
        target=target,
        ours=Side(
            label="SelmaSSLTrainer" if kind == "pretrain" else "SelmaFinetuneTrainer",
            start=steps,
            arguments={"kind": kind, "plan": plan},
            environment={**_PINNED, **environment},
        ),
        other=Side(
            label=labels[against],
            start=steps,
            arguments={"kind": against, "plan": plan, "settings": settings},
            environment={**_PINNED, **environment},
        ),
    )


def _tiny(comparison: Comparison) -> Comparison:
    from dataclasses import replace

    flat = comparison.name.endswith("two-dimensional")
    plan = replace(TINY, patch=TINY.patch[:2] if flat else TINY.patch)
    sides = [replace(side, arguments={**side.arguments, "plan": plan}) for side in (comparison.ours, comparison.other)]
    return replace(comparison, ours=sides[0], other=sides[1], repetitions=1)
