"""Runs nnU-Net's commands, in the environment variables of a workspace."""

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
    """Create nnU-Net's three folders in a workspace; returns the variables for these and for the folder of the trainers.

    Other folders in `nnUNet_extTrainer` are kept after the folder of this package.
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
    """Path of a program beside this Python, or else on the PATH; raises `SelmaError` if there is none."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        raise SelmaError(f"{name} was not found; install nnU-Net into this environment: pip install nnunetv2")
    return path


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output shown, and wait for it.

    Raises:
        SelmaError: the command failed; its output says why.
    """
    done = subprocess.run([program(command[0]), *command[1:]], env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        raise SelmaError(f"{shlex.join(command)} ended with code {done.returncode}; the reason stands above")


def run_forked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command in a fork of this process, which loads PyTorch once for all commands; elsewhere than on Linux as `run` does.

    The variables are set in this process too, because nnU-Net reads some of them when it is imported.

    Raises:
        SelmaError: the command failed, or is not installed.
    """
    os.environ.update(environment or {})
    entries = [entry for entry in entry_points(group="console_scripts") if entry.name == command[0]]
    if not entries or "fork" not in multiprocessing.get_all_start_methods():
        run(command, environment)
        return
    child = multiprocessing.get_context("fork").Process(target=_call, args=(entries[0].load(), list(command)))
    child.start()
    child.join()
    if child.exitcode:
        raise SelmaError(f"{shlex.join(command)} ended with code {child.exitcode}; the reason stands above")


def _call(function: Any, command: list[str]) -> None:
    sys.argv = command
    sys.exit(function())
