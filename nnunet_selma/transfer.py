"""Weights from one network into another, and the report of what was carried over."""

import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError

_HEADS = (".seg_layers.",)
"""Output layers: they answer the pretext's question, not the segmentation's, and stay random (as in nnU-Net)."""
_PREFIXES = ("module.", "_orig_mod.")
_LEAST_SHARE = 0.2
_STATES = ("network_weights", "state_dict", "model_state_dict", "model", "network")


@dataclass(frozen=True)
class Carried:
    """What became of one tensor of the target network: "copied", "adapted", "random" or "head" (left random on purpose)."""

    key: str
    fate: str
    parameters: int


@dataclass(frozen=True)
class TransferReport:
    """What was carried over, tensor by tensor."""

    tensors: tuple[Carried, ...]

    @property
    def share(self) -> float:
        """Share of the network's parameters, heads left out, that were copied or adapted."""
        body = [t for t in self.tensors if t.fate != "head"]
        total = sum(t.parameters for t in body)
        return sum(t.parameters for t in body if t.fate in ("copied", "adapted")) / total if total else 0.0

    def table(self) -> str:
        """A table to print: for each part of the network, parameters by fate."""
        parts: dict[str, Counter[str]] = {}
        for tensor in self.tensors:
            part = (
                ".".join(tensor.key.split(".")[:3]) if ".stages." in tensor.key else ".".join(tensor.key.split(".")[:2])
            )
            parts.setdefault(part, Counter())[tensor.fate] += tensor.parameters
        fates = ("copied", "adapted", "random", "head")
        titles = ("copied", "adapted", "left random", "new head")
        lines = [f"{'part of the network':<28}" + "".join(f"{title:>13}" for title in titles)]
        lines += [f"{part:<28}" + "".join(f"{count[fate]:>13,}" for fate in fates) for part, count in parts.items()]
        return "\n".join([*lines, f"{self.share:.1%} of the parameters below the heads come from pretraining"])


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of nnU-Net, MONAI or plain PyTorch; no code that it carries is run.

    Raises:
        SelmaError: no such file, no checkpoint, no weights in it, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such checkpoint")
    # nnU-Net's own checkpoints hold numpy scalars in their log; nothing else beyond torch's list is let in
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        scalar,
        np.dtype,
        np.ndarray,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the pickle's protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        raise SelmaError(
            f"{path}: refused, because loading it would run code that it carries, which weights never need ({reason}). "
            "Use a checkpoint from a source you trust, saved as a plain state_dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise SelmaError(f"{path}: is no checkpoint or is cut short; copy it again") from error
    return _state(content, path)


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _STATES if key in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise SelmaError(f"{path}: holds no network weights")
    return {_bare(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _bare(key: str) -> str:
    """A key without the prefixes of DistributedDataParallel and torch.compile."""
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def carry_over(weights: Mapping[str, Tensor], network: nn.Module, name: str = "the checkpoint") -> TransferReport:
    """Copy into a network every weight that fits, adapt the first layer to another number of input channels, report the rest.

    Args:
        weights: the pretrained state.
        network: the network to fill, changed in place; heads keep their random weights.
        name: what an error calls the weights.

    Raises:
        SelmaError: less than a fifth of the parameters fit: another architecture. The network is then unchanged.
    """
    tensors = _distinct(network.state_dict())
    fates: list[Carried] = []
    fitting: list[tuple[Tensor, Tensor]] = []
    for key, aliases, old in tensors:
        fate, value = _fate(key, old, next((weights[alias] for alias in aliases if alias in weights), None))
        fates.append(Carried(key, fate, old.numel()))
        if value is not None:
            fitting.append((old, value))
    report = TransferReport(tuple(fates))
    if report.share < _LEAST_SHARE:
        raise SelmaError(
            f"{name}: only {report.share:.1%} of the network's parameters fit, it comes from another architecture; "
            "pretrain with the plans of this dataset (nnunet-selma plan-pretraining)"
        )
    with torch.no_grad():
        for old, value in fitting:
            old.copy_(value)
    return report


def _distinct(state: Mapping[str, Tensor]) -> list[tuple[str, list[str], Tensor]]:
    """(first key, all keys, tensor) of each tensor; nnU-Net's networks list their encoder again inside the decoder."""
    keys: dict[tuple[int, torch.Size], list[str]] = {}
    for key, tensor in state.items():
        keys.setdefault((tensor.data_ptr(), tensor.shape), []).append(key)
    return [(aliases[0], aliases, state[aliases[0]]) for aliases in keys.values()]


def _fate(key: str, old: Tensor, found: Tensor | None) -> tuple[str, Tensor | None]:
    if any(head in key for head in _HEADS):
        return "head", None
    if found is None:
        return "random", None
    if found.shape == old.shape:
        return "copied", found.to(old.dtype)
    same_but_inputs = found.ndim == old.ndim > 2 and found.shape[0] == old.shape[0] and found.shape[2:] == old.shape[2:]
    if same_but_inputs and _is_input_layer(key):
        # each new input channel gets the mean filter, scaled so that the layer's response keeps its size
        mean = found.mean(dim=1, keepdim=True) * (found.shape[1] / old.shape[1])
        return "adapted", mean.expand_as(old).to(old.dtype).clone()
    return "random", None


def _is_input_layer(key: str) -> bool:
    """True for the weight that reads the image: the stem, or the first convolution of the first stage."""
    return key.startswith(("encoder.stem.", "encoder.stages.0.0.convs.0."))
