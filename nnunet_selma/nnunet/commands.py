"""nnU-Net's own commands, as a user would type them, and the environment they run in."""

import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import FOLDER_VARIABLES, TRAINER_FOLDER


def workspace_environment(root: Path) -> dict[str, str]:
    """The variables of a workspace: nnU-Net's three folders below it, which are made, and the folder with the trainers.

    Folders of other trainers that are already in `nnUNet_extTrainer` stay behind ours.
    """
    folders = {name: root.expanduser().resolve() / name for name in FOLDER_VARIABLES}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    others = [p for p in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if p and Path(p) != TRAINER_FOLDER]
    return {
        **{name: str(folder) for name, folder in folders.items()},
        "nnUNet_extTrainer": os.pathsep.join([str(TRAINER_FOLDER), *others]),
    }


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


def run_forked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """As `run`, in a fork of this process, which loads PyTorch once for all commands; for many short ones, on Linux.

    The variables are set in this process too, because nnU-Net reads some of them when it is imported.

    Raises:
        SelmaError: the command failed, or is none that this Python has installed.
    """
    os.environ.update(environment or {})
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == command[0]]
    if not found or "fork" not in multiprocessing.get_all_start_methods():
        run(command, environment)
        return
    child = multiprocessing.get_context("fork").Process(target=_call, args=(found[0].load(), list(command)))
    child.start()
    child.join()
    if child.exitcode:
        raise SelmaError(f"{shlex.join(command)} ended with code {child.exitcode}; the reason stands above")


def _call(function: Any, command: list[str]) -> None:
    sys.argv = command
    sys.exit(function())
