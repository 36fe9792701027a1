"""Fit of the segmentation heads to carried-over features, by logistic regression, before the first training step.

A head with random weights first learns, at nnU-Net's momentum of 0.99, that nearly all voxels are background, and overshoots. A network of
random weights recovers within some dozen steps, a network whose pretrained parts learn slowly within up to 512 (docs/results.md). A fitted
head avoids this, and does not distort the pretrained features.

Source: linear probing, then fine-tuning, of Kumar et al., ICLR 2022 (arXiv 2202.10054), section 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_VOXELS = 8192
"""Number of voxels drawn from a batch, the same for each class in it."""
_ABSENT = -5.0
"""Logit of a class that is in no batch, relative to the smallest logit of a likeliest class: unlikely everywhere, but soon learnt."""
_RIDGE = 1e-4
_ITERATIONS = 100


@dataclass(frozen=True)
class Voxels:
    """Features and targets of some voxels."""

    features: Tensor
    """(voxel, channel)."""
    targets: Tensor
    """(voxel,) labels, or (voxel, region) of 0 and 1."""
    weights: Tensor
    """(voxel,): number of voxels of the batch that each represents."""

    def cross_entropy(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean cross entropy of a linear head; weight (output, channel), bias (output,)."""
        logits = self.features @ weight.T + bias
        if self.targets.ndim == 1:
            losses = functional.cross_entropy(logits, self.targets, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(logits, self.targets, reduction="none").mean(1)
        return (losses * self.weights).sum() / self.weights.sum()

    @property
    def is_uniform(self) -> bool:
        """True if all voxels have the same target."""
        return bool((self.targets == self.targets[:1]).all())


def draw_voxels(
    features: Tensor, target: Tensor, ignore_label: int | None, generator: torch.Generator, *, regions: bool = False
) -> Voxels:
    """Up to `MOST_VOXELS` random voxels of a batch, the same number of each class; for regions, inside any and outside all of them.

    Args:
        features: (patch, channel, *space).
        target: (patch, 1, *space) labels, or (patch, region, *space) of 0 and 1, as for nnU-Net's loss; with an ignore label, the last channel
            of regions is 1 there.
        ignore_label: None: every voxel has a label.
        generator: draws the voxels, on the CPU.
        regions: True if the target holds regions.
    """
    truth = target.cpu().movedim(1, -1).flatten(0, -2)
    known = torch.ones(len(truth), dtype=torch.bool)
    if regions:
        if ignore_label is not None:
            known, truth = truth[:, -1] == 0, truth[:, :-1]
        labels, strata = truth.double(), truth.any(1).long()
    else:
        labels = strata = truth[:, 0].long()
        if ignore_label is not None:
            known = labels != ignore_label
    places, weights = [], []
    present = torch.unique(strata[known]).tolist()
    for stratum in present:
        inside = torch.nonzero(known & (strata == stratum)).flatten()
        taken = inside[torch.randperm(len(inside), generator=generator)[: MOST_VOXELS // len(present)]]
        places.append(taken)
        weights.append(torch.full((len(taken),), len(inside) / len(taken), dtype=torch.float64))
    if not places:
        return Voxels(features.new_zeros(0, features.shape[1]).cpu().double(), labels[:0], torch.zeros(0).double())
    place = torch.cat(places)
    space = features[0, 0].numel()
    index = place.to(features.device)
    values = features.flatten(2)[index // space, :, index % space].cpu().double()
    return Voxels(values, labels[place], torch.cat(weights))


def join_voxels(parts: Sequence[Voxels]) -> Voxels:
    """The voxels of several batches."""
    return Voxels(*(torch.cat([getattr(part, name) for part in parts]) for name in ("features", "targets", "weights")))


def fit_linear(voxels: Voxels, outputs: int) -> tuple[Tensor, Tensor]:
    """Weight (output, channel) and bias (output,) with the least cross entropy, with a slight ridge penalty.

    Features are scaled to mean 0 and standard deviation 1 for the fit, so that it does not depend on their unit. The weights of a class
    without voxels are 0, and its bias makes it unlikely everywhere.
    """
    mean = voxels.features.mean(0)
    deviation = voxels.features.std(0).clamp(min=1e-8)
    scaled = Voxels((voxels.features - mean) / deviation, voxels.targets, voxels.weights)
    weight = torch.zeros(outputs, scaled.features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = scaled.cross_entropy(weight, bias) + _RIDGE * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    weight, bias = weight.detach() / deviation, bias.detach()
    bias = bias - weight @ mean
    likeliest = (voxels.features @ weight.T + bias).max(1).values.min() if voxels.targets.ndim == 1 else 0.0
    for output in range(outputs):
        truth = voxels.targets == output if voxels.targets.ndim == 1 else voxels.targets[:, output] > 0
        if not truth.any():
            weight[output], bias[output] = 0.0, likeliest + _ABSENT
    return weight, bias


def heads_of(network: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    """Heads of `decoder.seg_layers` that are a convolution of one voxel with a bias, coarse to fine; empty for other networks."""
    heads = getattr(getattr(network, "decoder", None), "seg_layers", None) or []
    return [
        head
        for head in heads
        if isinstance(head, nn.Conv2d | nn.Conv3d) and set(head.kernel_size) == {1} and head.bias is not None
    ]


def read_voxels(
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
    ignore_label: int | None,
    *,
    regions: bool = False,
) -> list[list[Voxels]]:
    """Features and targets at random voxels of some batches, for each head of a network; empty for heads that the network does not use.

    Args:
        network: without wrappers; its training mode is restored.
        batches: batches of nnU-Net's loader, "data" (patch, channel, *space) and "target", one array or one for each output.
        device: device of the network.
        ignore_label: nnU-Net's `LabelManager.ignore_label`.
        regions: nnU-Net's `LabelManager.has_regions`.
    """
    heads = heads_of(network)
    if not heads:
        return []
    read: dict[nn.Module, Tensor] = {}
    hooks = [head.register_forward_pre_hook(lambda head, inputs: read.update({head: inputs[0]})) for head in heads]
    parts: dict[nn.Module, list[Voxels]] = {head: [] for head in heads}
    generator = torch.Generator().manual_seed(0)
    training = network.training
    network.eval()
    try:
        for batch in batches:
            read.clear()
            with torch.no_grad():
                network(batch["data"].to(device))
            targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
            for head, features in read.items():
                for target in targets:
                    if target.shape[2:] == features.shape[2:]:
                        parts[head].append(draw_voxels(features, target, ignore_label, generator, regions=regions))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return list(parts.values())


def fit_heads(network: nn.Module, voxels: Sequence[Sequence[Voxels]]) -> list[tuple[float, float]]:
    """Fit the heads of a network, in place.

    Args:
        network: without wrappers.
        voxels: voxels of each head in the order of `read_voxels`, from one or several processes.

    Returns:
        Mean cross entropy before and after, for each fitted head, coarse to fine. A head whose voxels all have one target is not changed.
    """
    changes = []
    for head, parts in zip(heads_of(network), voxels, strict=True):
        if not parts or (of_head := join_voxels(parts)).is_uniform:
            continue
        state = {name: tensor.cpu().double() for name, tensor in head.state_dict().items()}
        before = of_head.cross_entropy(state["weight"].flatten(1), state["bias"])
        weight, bias = fit_linear(of_head, head.out_channels)
        head.load_state_dict({"weight": weight.view_as(head.weight), "bias": bias})
        changes.append((float(before), float(of_head.cross_entropy(weight, bias))))
    return changes
