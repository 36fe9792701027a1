"""Running nnU-Net's own commands, as a user would type them."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_selma.errors import SelmaError


def program(name: str) -> str:
    """The program of that name beside this Python, or else on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise SelmaError(f"{name} was not found; install nnU-Net into this environment: pip install nnunetv2")
    return found


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output shown, and wait for it.

    Raises:
        SelmaError: the command failed; what it printed says why.
    """
    done = subprocess.run([program(command[0]), *command[1:]], env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        raise SelmaError(f"{shlex.join(command)} ended with code {done.returncode}; the reason stands above")
