"""Check of the weights in a published folder: each checkpoint alone, and the safetensors file beside it."""

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.checkpoints import PRETEXT, SUFFIX, check_finite, read_checkpoint, unpickled
from nnunet_selma.sharing.light import OF_TRAINING, check_model

_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError)


def content_problems(path: Path) -> Generator[str, None, Mapping[str, Any] | None]:
    """Yield the faults of a checkpoint alone; returns its content, or None if it cannot be used."""
    if not path.is_file():
        yield f"{path} is missing; publish anew"
        return None
    strict = True
    try:
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE:
            content, strict = unpickled(path), False
        check_model(content, path)
    except SelmaError as error:
        yield str(error)
        return None
    if not strict:
        yield f"{path}: holds numpy objects, which strict readers of checkpoints refuse; publish anew"
    if states := [name for name in OF_TRAINING if content.get(name) is not None]:
        yield f"{path}: still holds what only a training needs ({', '.join(states)}), which only makes it larger; publish anew"
    if isinstance(content.get(PRETEXT), Mapping):
        yield f"{path}: still holds the state of the pretext ({PRETEXT}); publish anew"
    try:
        check_finite(content["network_weights"], str(path))
    except SelmaError as error:
        yield str(error)
    return dict(content)


def twin_problems(path: Path) -> Iterator[str]:
    """Faults of the safetensors file beside a checkpoint."""
    twin = path.with_suffix(SUFFIX)
    if not twin.is_file():
        yield f"{twin} is missing; publish anew"
        return
    try:
        ours, theirs = read_checkpoint(path).weights, read_checkpoint(twin).weights
        differing = [
            key
            for key in sorted(ours.keys() | theirs.keys())
            if key not in ours or key not in theirs or not torch.equal(ours[key], theirs[key])
        ]
    except SelmaError as error:
        yield str(error)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        yield f"{path}: cannot be compared with {twin.name} ({type(error).__name__}: {error}); publish anew"
    else:
        if differing:
            yield f"{twin}: holds other weights than {path.name} ({len(differing)} tensors differ, such as {differing[0]}); publish anew"
