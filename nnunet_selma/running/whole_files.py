"""Files and folders that are whole or absent, whenever a process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from nnunet_selma.errors import SelmaError


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file, which is renamed to the file at the end, and removed after an error.

    Args:
        path: the file that is written or replaced.
        shared: True if several processes may write the file at the same time, so that each needs a separate temporary file.
    """
    unique = f".{uuid4().hex[:8]}" if shared else ""
    partial = path.with_name(f"{path.name}{unique}.partial")
    try:
        partial.unlink(missing_ok=True)
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield a new folder beside a target, which is renamed to the target at the end, and removed after an error.

    Args:
        output: the target; folders above it are made. It may exist if it is an empty folder.

    Raises:
        SelmaError: the target exists, before or at the end.
    """
    output = output.resolve()
    _check_free(output)
    partial = output.with_name(f".{output.name}.{uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        _check_free(output)
        if output.is_dir():
            output.rmdir()  # some systems rename to no folder that exists
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(output: Path) -> None:
    """Raise `SelmaError` if there is anything at a path but an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SelmaError(f"{output}: exists already; remove it, or choose another -o")
