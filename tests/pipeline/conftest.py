"""One tiny run of the whole path with the real commands; the pipeline tests look at what it left and go on from there."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunet_selma.demo.demo import DemoSize, run_demo
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.pipeline import cpu_environment

TINY = DemoSize(
    patches=2,
    patch_edge=32,
    brain_shape=(32, 64, 64),
    tile=32,
    tiles_per_volume=2,
    test_patches=1,
    network_patch=16,
    features=(4, 8, 8),
    pretraining=(3, 3),
    finetuning=(2, 3),
)


@dataclass(frozen=True)
class Workspace:
    """A workspace with trained models, and its environment."""

    output: Path
    environment: dict[str, str]
    report: Path

    def path(self, pattern: str) -> Path:
        (found,) = (self.output / "workspace").glob(pattern)
        return found

    def run(self, *command: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment, **changes}
        return subprocess.run(
            [commands.program(command[0]), *command[1:]],
            env={k: v for k, v in environment.items() if v is not None},
            capture_output=True,
            text=True,
            check=False,
        )

    def settings(self, dataset: int, plans: str, *assignments: str) -> None:
        done = self.run("nnunet-selma", "settings", "-d", str(dataset), "-p", plans, *assignments)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Workspace:
    output = tmp_path_factory.mktemp("demo")
    before = dict(os.environ)
    try:
        report = run_demo(output, size=TINY)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Workspace(output.resolve(), cpu_environment(output / "workspace", "cpu"), report)
