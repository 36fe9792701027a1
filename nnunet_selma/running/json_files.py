"""JSON files that are whole or absent."""

import json
from math import isnan
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; raises `SelmaError`, which names the file, if it is no JSON."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SelmaError(f"{path}: is no valid JSON ({error}); restore or remove it") from error
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 under a temporary name and rename it.

    Names of files that are not UTF-8 hold characters that UTF-8 lacks; these are written as in JSON, which reads them back.
    """
    with whole_file(path, shared=True) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def without_nan(content: Any) -> Any:
    """The same content with None in place of NaN, which JSON does not know."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and isnan(content) else content
