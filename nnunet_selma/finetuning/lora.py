"""Low-rank adaptation of convolutions and linear layers (Hu et al. 2021, arXiv 2106.09685).

A weight is frozen and gets an addend of low rank, which starts at zero: the network is unchanged at first, and few numbers are trained. A
kernel is seen as a matrix whose rows are its first axis: output channels, or input channels where the convolution is transposed.

The state of an adapted network keeps the keys and shapes of the plain one and holds the frozen weights: whatever reads or fills a plain
network, as carrying weights over and nnU-Net's `-pretrained_weights` do, does the same here. `merged_state` gives the weights that
compute what the adapted network computes, `adapter_state` what a run needs to go on exactly.
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
        weight: of the layer, (row, *) in any number of dimensions.
        rank: columns of `up` and rows of `down`; never more than the weight's own matrix has.
        alpha: how much the addend counts, whatever the rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        own = min(rank, rows, columns)
        self.scale = alpha / rank
        self.up = nn.Parameter(weight.new_zeros(rows, own))
        self.down = nn.Parameter(torch.randn(own, columns, device=weight.device, dtype=weight.dtype) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in the shape of the frozen one."""
        return weight + self.scale * (self.up @ self.down).view(weight.shape)  # (row, column) → (row, *)


def add_lora(module: nn.Module, rank: int, alpha: float) -> int:
    """Give every convolution, transposed or not, and every linear layer of a module an adapter; returns how many.

    Their weights are frozen; biases and all other parameters stay as they are.

    Args:
        module: changed in place; its outputs are not.
        rank: of the addend.
        alpha: the addend is scaled by alpha / rank.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    for layer in layers:
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
        layer.register_state_dict_post_hook(_with_plain_keys)  # type: ignore[no-untyped-call]
        layer.register_load_state_dict_pre_hook(_from_plain_keys)  # type: ignore[no-untyped-call]
    return len(layers)


def merge(module: nn.Module) -> int:
    """Add every adapter to its weight and remove it; returns how many. The module is plain again, its weights can be trained."""
    layers = [layer for _, layer in _adapted(module)]
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
        layer.weight.requires_grad_(True)
    return len(layers)


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a plain network that computes the same: its keys and shapes; the adapted network is not touched.

    A layer that the network lists more than once, as dynamic_network_architectures does, has one tensor under all its keys.
    """
    state: dict[str, Tensor] = network.state_dict()
    weights = {layer: cast(Tensor, layer.weight) for _, layer in _adapted(network)}
    for name, layer in network.named_modules(remove_duplicate=False):
        if layer in weights:
            state[f"{name}.weight"] = weights[layer]
    return state


def adapter_state(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """For each adapted layer the frozen weight and both factors, which the merged state does not tell apart."""
    return {name: _parts(layer).state_dict() for name, layer in _adapted(network)}


def load_adapter_state(network: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill frozen weights and factors with what `adapter_state` gave of such a network.

    Raises:
        SelmaError: other layers have adapters, or these are of another rank.
    """
    own = adapter_state(network)
    if _shapes(state) != _shapes(own):
        raise SelmaError(
            f"the checkpoint has adapters for {len(state)} layers, the network for {len(own)}, or they are of another rank; "
            "go on with the finetuning.lora_rank that the run began with"
        )
    for name, layer in _adapted(network):
        _parts(layer).load_state_dict(state[name])


def _shapes(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, torch.Size]]:
    return {name: {key: tensor.shape for key, tensor in parts.items()} for name, parts in state.items()}


def _adapted(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and layer of all that have an adapter, each once."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer, "weight") and isinstance(_parts(layer)[0], LowRank)
    ]


def _parts(layer: nn.Module) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])


def _with_plain_keys(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Give, in a state that was just made, the frozen weight its plain key, and leave the factors out."""
    for key in [key for key in state if key.startswith(prefix + _PARTS)]:
        value = state.pop(key)
        if key == prefix + _BASE:
            state[f"{prefix}weight"] = value


def _from_plain_keys(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Turn, in a state that is about to be loaded, a plain weight into the frozen one; the factors stay."""
    if parametrize.is_parametrized(layer, "weight") and f"{prefix}weight" in state:
        own = _parts(layer).state_dict(prefix=prefix + _PARTS)
        state.update({**own, prefix + _BASE: state.pop(f"{prefix}weight")})
