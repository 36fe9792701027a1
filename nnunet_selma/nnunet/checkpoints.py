"""Checkpoints: reading weights without running code in the file, the record of a pretrained network, and export to safetensors.

A checkpoint may have three entries beside its weights. `selma_ancestor` is the origin of the weights that a fine-tuning started from
(`finetuning.ancestor`). `selma_trained` names the parts of the network that the pretraining trained; the other
parts are random and are not read. `nnssl_adaptation_plan` names the encoder and describes its training: this record is nnssl's (Wald et al.
2025, arXiv 2412.17041), and nnU-Net's development version (`nnUNetv2_train_pretrained`) needs it.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import whole_configuration
from nnunet_selma.running.whole_files import whole_file

RECORD = "nnssl_adaptation_plan"
TRAINED = "selma_trained"
ANCESTOR = "selma_ancestor"
PRETEXT = "pretext_state"
"""Entry in the checkpoints of a pretraining: the state of its pretext."""
SUFFIX = ".safetensors"
_ALIASES, _ORIGIN = "selma_aliases", "selma_origin"
_PREFIXES = ("module.", "_orig_mod.")
_STATES = (
    "network_weights",
    "state_dict",
    "model_state_dict",
    "teacher",
    "ema_model",
    "model",
    "network",
    "net",
    "student",
)
"""Entries of checkpoints that hold weights, in order of preference: a moving average before the network that it follows."""
_VERSION_1 = ("conv_blocks_context.", "conv_blocks_localization.")
"""Beginnings of names in networks of nnU-Net's version 1."""
# fields of nnssl's Plan and ConfigurationPlan, which refuse all others
_OF_PLANS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)
_OF_CONFIGURATION = (
    "data_identifier",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "spacing",
    "patch_size",
)


@dataclass(frozen=True)
class AdaptationRecord:
    """nnssl's record in a checkpoint: numbers, strings, lists and dictionaries only."""

    content: dict[str, Any]

    @property
    def patch_size(self) -> tuple[int, ...] | None:
        """Voxels of a training patch, (z, y, x); None if the record lacks them."""
        configurations = (self.content.get("pretrain_plan") or {}).get("configurations") or {}
        planned = next((each.get("patch_size") for each in configurations.values()), None)
        # nnssl writes this entry if a pretext crops its patches
        patch = self.content.get("pretrain_patch_size") or planned
        return tuple(patch) if patch else None


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a checkpoint, and what it says about them."""

    weights: dict[str, Tensor]
    """The trained weights, under names without the prefixes of DistributedDataParallel and torch.compile."""
    record: AdaptationRecord | None = None
    trained: tuple[str, ...] = ()
    """Modules that the pretraining trained; empty: the whole network."""
    place: str = ""
    """Entry of the file that holds the weights, such as "state_dict"; empty if the file is the weights."""
    of_pretext: bool = False
    """True if the heads are those of a pretext."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Trainer, dataset, plans, configuration and epochs of the training, and its own ancestor, as far as nnU-Net's checkpoint names them."""

    def named_as_in(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights; encoder, stem and positional embedding under the network's names, if a record names them."""
        record = self.record.content if self.record else {}
        places = [
            (record.get(name), getattr(network, name, None))
            for name in ("key_to_lpe", "key_to_stem", "key_to_encoder")  # each may be part of the next
        ]
        moved = {}
        for key, tensor in self.weights.items():
            for here, there in places:
                if here and there and (key == here or key.startswith(f"{here}.")):
                    moved[there + key[len(here) :]] = tensor
                    break
        return {**self.weights, **moved}


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a checkpoint of nnU-Net, nnssl, MONAI or plain PyTorch, or in safetensors; no code in the file is run.

    Raises:
        SelmaError: no such file, no checkpoint, no weights in it, or a pickle that would run code.
    """
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such checkpoint")
    content = _read_safetensors(path) if path.suffix == SUFFIX else unpickled(path)
    state, place = _state(content, path)
    entries = content if isinstance(content, Mapping) else {}
    record, trained = entries.get(RECORD), tuple(entries.get(TRAINED, ()))
    weights = {key: value for key, value in state.items() if not trained or _lies_in(key, trained)}
    if not weights:
        raise SelmaError(f"{path}: says that {', '.join(trained)} was trained, and holds no weights of that name")
    record = AdaptationRecord(plain(record)) if isinstance(record, Mapping) else None
    of_pretext = any(entries.get(key) for key in (PRETEXT, RECORD, TRAINED))
    return Checkpoint(weights, record, trained, place, of_pretext, _origin(entries))


def _origin(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of nnU-Net's checkpoints that say where the weights come from; those that are lacking are left out."""
    begun = entries.get("init_args")
    begun = begun if isinstance(begun, Mapping) else {}
    plans = begun.get("plans")
    plans = plans if isinstance(plans, Mapping) else {}
    origin = {
        "trainer": entries.get("trainer_name"),
        "dataset": plans.get("dataset_name"),
        "plans": plans.get("plans_name"),
        "configuration": begun.get("configuration"),
        "epochs": entries.get("current_epoch"),
        "ancestor": entries.get(ANCESTOR),
    }
    return {key: plain(value) for key, value in origin.items() if value is not None}


def unpickled(path: Path) -> Any:
    """The content of a file of `torch.save`, read without running code in it.

    Raises:
        SelmaError: the file would run code, or is no such file.
    """
    # nnU-Net's checkpoints have numpy scalars in their log; all other types must be in torch's list
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # its name under numpy 1
        np.dtype,
        np.ndarray,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The content of a safetensors file, like an unpickled checkpoint: `state_dict`, aliases included, and the entries of the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise SelmaError(f"{path}: is no safetensors file or is cut short; copy it again") from error
    try:
        entries = {
            key: json.loads(metadata[key]) for key in (RECORD, TRAINED, PRETEXT, ANCESTOR, _ALIASES) if key in metadata
        }
    except ValueError as error:
        raise SelmaError(f"{path}: its metadata are no valid JSON ({error}); export it again") from error
    aliases = entries.pop(_ALIASES, {})
    state.update({alias: state[key] for alias, key in aliases.items() if key in state})
    return {"state_dict": state, **entries}


def _state(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights, and the name of their entry in the file."""
    place: list[str] = []
    while isinstance(content, Mapping):
        inner = next((key for key in _STATES if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            break
        place.append(inner)
        content = content[inner]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        entries = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise SelmaError(f"{path}: holds no network weights under a name that is known; it holds {entries}")
    state = {_bare(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if any(key.startswith(_VERSION_1) for key in state):
        raise SelmaError(
            f"{path}: is a model of nnU-Net's version 1, whose networks are not those of version 2; pretrain with the plans of this dataset"
        )
    return state, ".".join(place)


def _bare(key: str) -> str:
    """A key without the prefixes of DistributedDataParallel and torch.compile."""
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _lies_in(key: str, modules: tuple[str, ...]) -> bool:
    """True if a weight belongs to one of the modules."""
    # nnU-Net's decoders list their encoder again: these keys belong to the encoder
    name = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def check_finite(weights: Mapping[str, Any], name: str) -> None:
    """Raise `SelmaError` if weights are NaN or infinite.

    Args:
        weights: tensors by name; other values are not checked.
        name: name of the checkpoint in the error.
    """
    for key, weight in weights.items():
        if isinstance(weight, Tensor) and not torch.isfinite(weight).all():
            raise SelmaError(
                f"{name}: holds numbers that are not finite ({key}), so the training that wrote it was lost; train again, or choose another "
                "checkpoint"
            )


def adaptation_record(
    network: nn.Module, plans: Mapping[str, Any], configuration: str, input_channels: int
) -> dict[str, Any] | None:
    """Record in the format of nnssl of a network that was trained with these plans; None for a network that does not name its encoder.

    It has numbers, strings, lists and dictionaries only, and only the fields of nnssl's classes.

    Args:
        network: without wrappers; has the attributes `key_to_encoder`, `key_to_stem`, `keys_to_in_proj` and, optionally, `key_to_lpe`.
        plans: the whole plans.
        configuration: name of the trained configuration.
        input_channels: input channels of the pretraining.
    """
    if not hasattr(network, "key_to_encoder"):
        return None
    planned = whole_configuration(plans, configuration)
    of_configuration = {key: planned[key] for key in _OF_CONFIGURATION}
    of_configuration["spacing_style"] = "median"
    of_configuration["resampling_fn_mask"] = planned["resampling_fn_seg"]
    of_configuration["resampling_fn_mask_kwargs"] = planned["resampling_fn_seg_kwargs"]
    architecture = planned["architecture"]
    record: dict[str, Any] = plain(
        {
            "architecture_plans": {
                "arch_class_name": architecture["network_class_name"],
                "arch_kwargs": architecture["arch_kwargs"],
                "arch_kwargs_requiring_import": architecture["_kw_requires_import"],
            },
            "pretrain_plan": {
                **{key: plans[key] for key in _OF_PLANS},
                "configurations": {configuration: of_configuration},
            },
            "pretrain_num_input_channels": input_channels,
            "recommended_downstream_patchsize": planned["patch_size"],
            **{key: getattr(network, key) for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj")},
            "key_to_lpe": getattr(network, "key_to_lpe", None),
        }
    )
    return record


def plain(content: Any) -> Any:
    """A copy without numpy types and tensors, which strict readers and JSON refuse; tuples become lists."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content.tolist() if isinstance(content, np.generic | np.ndarray | Tensor) else content


def distinct(state: Mapping[str, Any]) -> list[tuple[str, list[str], Tensor]]:
    """(first key, all keys, tensor) of each tensor; nnU-Net's networks list their encoder again inside the decoder."""
    keys: dict[Any, list[str]] = {}
    for key, tensor in state.items():
        if isinstance(tensor, Tensor):
            # all empty tensors have the same address
            place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else key
            keys.setdefault(place, []).append(key)
    return [(aliases[0], aliases, state[aliases[0]]) for aliases in keys.values()]


def export_weights(source: Path, target: Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Write the trained weights of a checkpoint, and its other entries, as safetensors; returns the numbers of tensors and parameters.

    Each tensor is written once, because the format refuses shared memory; its other names are in the metadata, for `read_checkpoint`.

    Raises:
        SelmaError: the source cannot be read, the target exists or has another suffix, or it could not be written.
    """
    if target.suffix != SUFFIX:
        raise SelmaError(f"{target}: the name of the exported file must end in {SUFFIX}")
    if target.exists() and not overwrite:
        raise SelmaError(f"{target}: exists already; choose another name", option="add --overwrite")
    checkpoint = read_checkpoint(source)
    tensors = distinct(checkpoint.weights)
    aliases = {alias: key for key, names, _ in tensors for alias in names[1:]}
    record = checkpoint.record.content if checkpoint.record else None
    entries = {
        _ALIASES: aliases,
        TRAINED: checkpoint.trained,
        RECORD: record,
        PRETEXT: checkpoint.of_pretext,
        ANCESTOR: checkpoint.origin.get("ancestor"),
    }
    metadata = {
        "format": "pt",
        _ORIGIN: source.name,
        **{key: json.dumps(value) for key, value in entries.items() if value},
    }
    try:
        with whole_file(target) as partial:
            save_file({key: tensor.clone().contiguous() for key, _, tensor in tensors}, partial, metadata)
    except SafetensorError as error:
        raise SelmaError(f"{target}: could not be written ({error}); check the folder and make room") from error
    return len(tensors), sum(tensor.numel() for _, _, tensor in tensors)
