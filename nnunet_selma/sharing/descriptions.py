"""JSON files of a published folder, with a sentence for each that is not as the check of the folder needs it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from nnunet_selma.sharing.publish import CONFIG

FOLD = re.compile(r"all|0|[1-9]\d*", re.ASCII)
"""Name of a fold as nnU-Net writes it; another, such as 00, would make it load another folder than was read."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict)


def _holds_dictionaries(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int | float) for each in value)


def _are_folds(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and FOLD.fullmatch(each) for each in value)


_ENTRIES: dict[str, dict[str, Callable[[Any], bool]]] = {
    "plans.json": {"dataset_name": _is_text, "plans_name": _is_text, "configurations": _holds_dictionaries},
    "dataset.json": {"labels": _is_dictionary, "channel_names": _is_dictionary},
    CONFIG: {
        **dict.fromkeys(("kind", "name", "license", "configuration", "network_class_name", "spacing_unit"), _is_text),
        "folds": _are_folds,
        "classes": _is_dictionary,
        "spacing_zyx": _are_numbers,
    },
}
"""File to the entries that the check reads, and what each must be."""


def read_description(path: Path, kind: type[Any] = dict) -> tuple[Any, list[str]]:
    """The content of a file, empty where it is lacking or faulty, and the sentences about its faults.

    Args:
        path: a file of JSON.
        kind: dict or list.
    """
    if not path.is_file():
        return kind(), []
    try:
        content: Any = read_json(path)
    except SelmaError as error:
        return kind(), [str(error)]
    if not isinstance(content, kind):
        return kind(), [f"{path}: is no {'list' if kind is list else 'dictionary'}; restore it"]
    entries = _ENTRIES.get(path.name, {})
    if path.name == "dataset.json" and content.get("modality"):  # the older name of the channels
        entries = {"labels": _is_dictionary, "modality": _is_dictionary}
    if faulty := [entry for entry, fits in entries.items() if not fits(content.get(entry))]:
        return kind(), [f"{path}: lacks {', '.join(faulty)}, or holds something else there; publish anew"]
    return content, []
