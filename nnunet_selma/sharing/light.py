"""Checkpoints, plans and descriptions as others receive them: without what only a training needs, and without the folders of this machine."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.checkpoints import ANCESTOR, PRETEXT, RECORD, TRAINED, plain

OF_TRAINING = ("optimizer_state", "grad_scaler_state", "logging")
"""Entries of nnU-Net's checkpoints that only a training that goes on needs."""
_NEEDED = ("network_weights", "trainer_name", "init_args")
_MIRRORING = "inference_allowed_mirroring_axes"
_ROOT = r"(?:file:/+|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|[/\\]{1,2}(?=[^\s/\\]+[/\\]))"
_WHOLE = re.compile(rf"(?!.*(?:\s[/\\~]|\.$)){_ROOT}[^:'\"`]*|/[^\s/]+")
_QUOTED = re.compile(rf"(?<=(['\"`])){_ROOT}.*?(?=\1)")
_BEFORE_COLON = re.compile(rf"^{_ROOT}.*?(?=: )")
_IN_SENTENCE = re.compile(rf"(?<![\w.:/\\~]){_ROOT}[^\s'\"`,;()<>]*(?: (?=[^\s/\\~:]+[/\\])[^\s'\"`,;()<>]+)*")
"""A path in a sentence; a word behind a space belongs to it if it holds a separator, as in /home/a name/file."""


def check_model(content: Any, path: Path) -> None:
    """Raise `SelmaError` if the content of a file lacks an entry without which nnU-Net cannot predict."""
    lacking = [name for name in _NEEDED if not isinstance(content, Mapping) or name not in content]
    if lacking:
        raise SelmaError(f"{path}: is no checkpoint of nnU-Net, without {', '.join(lacking)}; give a model of nnU-Net")
    for name in ("network_weights", "init_args"):
        if not isinstance(content[name], Mapping):
            raise SelmaError(
                f"{path}: is no checkpoint of nnU-Net, its {name} is no dictionary; give a model of nnU-Net"
            )


def light_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that prediction and fine-tuning need, in types that the strictest readers take.

    Optimiser, gradient scaler, log and the state of a pretext are left out, and paths lose the folders of this machine.

    Args:
        content: the content of a checkpoint that `check_model` accepts.
    """
    begun = content["init_args"]
    light = {
        "network_weights": content["network_weights"],
        "trainer_name": content["trainer_name"],
        "init_args": {
            "configuration": begun["configuration"],
            **({"fold": begun["fold"]} if "fold" in begun else {}),
            **({"plans": public_plans(plain(begun["plans"]))} if "plans" in begun else {}),
        },
    }
    axes = content.get(_MIRRORING)
    light[_MIRRORING] = None if axes is None else tuple(plain(axes))
    for entry in ("current_epoch", RECORD, TRAINED, ANCESTOR):
        if entry in content:
            light[entry] = without_folders(plain(content[entry]))
    if PRETEXT in content:
        light[PRETEXT] = True
    return light


def public_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plans in which paths lose the folders of this machine."""
    public: dict[str, Any] = without_folders(plans)
    return public


def without_folders(content: Any) -> Any:
    """A copy in which a path of a machine is its name alone, or, for a checkpoint of nnU-Net, the path below nnUNet_results.

    Paths are those from a root, a drive or a home folder, alone or in a sentence. Keys are left as they are.
    """
    if isinstance(content, Mapping):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_folders(value) for value in content]
    if not isinstance(content, str):
        return content
    if _WHOLE.fullmatch(content):
        return _public_path(content)
    for pattern in (_QUOTED, _BEFORE_COLON, _IN_SENTENCE):
        content = pattern.sub(lambda match: _public_path(match.group()), content)
    return content


def _public_path(text: str) -> str:
    """Name of a path, or for a file in the folder of a fold the last four parts."""
    path = PureWindowsPath(text)  # takes both separators
    if path.parent.name.startswith("fold_") and "__" in path.parent.parent.name:
        return "/".join(path.parts[-4:])
    return path.name or text
