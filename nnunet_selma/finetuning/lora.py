"""Low-rank adaptation of convolutions and linear layers (Hu et al. 2021, arXiv 2106.09685).

A weight is frozen, and a trained addend of low rank is added. The addend starts at zero, so that the network is unchanged at first. A kernel
is a matrix whose rows are its first axis: output channels, or input channels if the convolution is transposed.

The state of an adapted network has the keys and shapes of the plain network and holds the frozen weights. Weights can therefore be carried
over, and read by nnU-Net's `-pretrained_weights`, as for a plain network. `merged_state` returns the adapted weights, `adapter_state` frozen
weights and factors, with which a run goes on exactly.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from nnunet_selma.errors import SelmaError

_BASE = "parametrizations.weight.original"
_PARTS = "parametrizations.weight."


class LowRank(nn.Module):
    """Low-rank addend of a weight: alpha / rank · up · down, zero at first (section 4.1).

    Args:
        weight: weight of the layer, (row, *) in any number of dimensions.
        rank: columns of `up` and rows of `down`; at most the rows and columns of the weight's matrix.
        alpha: scale of the addend, independent of the rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        inner = min(rank, rows, columns)
        self.scale = alpha / rank
        self.up = nn.Parameter(weight.new_zeros(rows, inner))
        self.down = nn.Parameter(torch.randn(inner, columns, device=weight.device, dtype=weight.dtype) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in the shape of the frozen one."""
        return weight + self.scale * (self.up @ self.down).view(weight.shape)  # (row, column) → (row, *)


def add_lora(module: nn.Module, rank: int, alpha: float) -> int:
    """Add an adapter to every convolution, transposed or not, and every linear layer of a module; returns their number.

    Their weights are frozen; biases and all other parameters are not changed.

    Args:
        module: changed in place; its outputs stay the same.
        rank: rank of the addend.
        alpha: the addend is scaled by alpha / rank.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    for layer in layers:
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
        layer.register_state_dict_post_hook(_with_plain_keys)  # type: ignore[no-untyped-call]
        layer.register_load_state_dict_pre_hook(_from_plain_keys)  # type: ignore[no-untyped-call]
    return len(layers)


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a plain network with the same outputs; the adapted network is not changed.

    A layer that is listed more than once, as in dynamic_network_architectures, has one tensor under all its keys.
    """
    state: dict[str, Tensor] = network.state_dict()
    weights = {layer: cast(Tensor, layer.weight) for _, layer in _adapted(network)}
    for name, layer in network.named_modules(remove_duplicate=False):
        if layer in weights:
            state[f"{name}.weight"] = weights[layer]
    return state


def adapter_state(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The frozen weight and both factors of each adapted layer."""
    return {name: _parts(layer).state_dict() for name, layer in _adapted(network)}


def load_adapter_state(network: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore the frozen weights and factors that `adapter_state` returned.

    Raises:
        SelmaError: other layers have adapters, or the adapters have another rank.
    """
    adapters = adapter_state(network)
    if _shapes(state) != _shapes(adapters):
        raise SelmaError(
            f"the checkpoint has adapters for {len(state)} layers, the network for {len(adapters)}, or they are of another rank; "
            "go on with the finetuning.lora_rank that the run began with"
        )
    for name, layer in _adapted(network):
        _parts(layer).load_state_dict(state[name])


def _shapes(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, torch.Size]]:
    return {name: {key: tensor.shape for key, tensor in parts.items()} for name, parts in state.items()}


def _adapted(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each layer with an adapter, each layer once."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer, "weight") and isinstance(_parts(layer)[0], LowRank)
    ]


def _parts(layer: nn.Module) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])


def _with_plain_keys(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the frozen weight to its plain key, and leave the factors out, in a state that was just made."""
    for key in [key for key in state if key.startswith(prefix + _PARTS)]:
        value = state.pop(key)
        if key == prefix + _BASE:
            state[f"{prefix}weight"] = value


def _from_plain_keys(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename a plain weight to the frozen weight, and keep the layer's factors, in a state that is about to be loaded."""
    if parametrize.is_parametrized(layer, "weight") and f"{prefix}weight" in state:
        factors = _parts(layer).state_dict(prefix=prefix + _PARTS)
        state.update({**factors, prefix + _BASE: state.pop(f"{prefix}weight")})
