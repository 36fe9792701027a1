"""Parts that pretexts on features share: heads, teachers and their schedules, and sums over processes."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


def projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a norm between them, (batch, inputs) to (batch, outputs).

    The norm is layer norm, not batch norm, because nnU-Net's batches have two patches; BYOL does not need batch statistics (Richemond et
    al. 2020, arXiv 2010.10241).
    """
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy of a module that is not trained."""
    return deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher towards its student: teacher ← momentum × teacher + (1 - momentum) × student."""
    torch._foreach_lerp_(_tensors(teacher), _tensors(student), 1 - momentum)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a floating-point type, sorted by name."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return [named[name] for name in sorted(named) if named[name].is_floating_point()]


def cosine_to_one(start: float, step: int, steps: int) -> float:
    """Momentum at a step: it rises from `start` to 1 as 1 - (1 - start) × (cos(π step / steps) + 1) / 2 (Grill et al. 2020, section 3.3)."""
    return 1 - (1 - start) * (math.cos(math.pi * min(1.0, step / max(1, steps))) + 1) / 2


class _Gathered(torch.autograd.Function):
    """Concatenation of the features of all processes; gradients are summed over all processes."""

    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        """(batch, feature) of every process to (processes × batch, feature)."""
        features = features.contiguous()
        parts = [torch.empty_like(features) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, features)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """The share of this process in the summed gradient."""
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_features(features: Tensor) -> Tensor:
    """Features of all processes, (processes × batch, feature), with gradients; every process has the same batch size."""
    if not _several_processes():
        return features
    result: Tensor = _Gathered.apply(features)  # type: ignore[no-untyped-call]
    return result


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if _several_processes():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
