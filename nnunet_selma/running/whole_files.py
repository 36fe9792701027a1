"""Files that are whole or absent, whenever a process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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
