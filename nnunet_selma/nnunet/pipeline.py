"""The commands that lead from a download to a segmentation, as a user types them, in one workspace."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.cores import usable_cores

ANNOTATED, UNLABELLED = 510, 500
"""Usual ids of the annotated and the unlabelled dataset."""


def cpu_environment(workspace: Path, device: str) -> dict[str, str]:
    """Variables of a workspace; on a CPU also numbers of threads and workers that put one compute thread on each core.

    On a GPU nnU-Net's own numbers stay, because the GPU would wait for patches that are loaded between its steps.
    """
    cores = str(usable_cores())  # nnU-Net predicts with as many threads as it may start processes
    threads = {"OMP_NUM_THREADS": cores, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": cores}
    return {**commands.workspace_environment(workspace), **(threads if device == "cpu" else {})}


def quoted(word: Path | str) -> str:
    """The word as a shell takes it, with quotes if it holds blanks."""
    return shlex.quote(str(word))


@dataclass(frozen=True, kw_only=True)
class Training:
    """One call of `nnUNetv2_train`."""

    dataset_id: int
    trainer: str
    plans: str
    configuration: str = "3d_fullres"
    fold: str = "0"

    @property
    def model(self) -> str:
        """Options by which nnU-Net's commands know the trained model."""
        return f"-tr {self.trainer} -c {self.configuration} -p {quoted(self.plans)} -f {self.fold}"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Runs commands of nnU-Net and of this package on an annotated and an unlabelled dataset."""

    folders: Folders
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that every command gets."""
    annotated_id: int = ANNOTATED
    unlabelled_id: int = UNLABELLED
    device: str = "cpu"
    say: Callable[[str], None] = lambda _: None
    """Called with each command before it runs."""
    run_command: Callable[[Sequence[str], Mapping[str, str]], None] = commands.run
    log: list[tuple[str, float]] = field(default_factory=list)
    """Each command that ended well, with its seconds."""

    def run(self, line: str, **environment: str) -> None:
        """Print a command line, run it and log its time; raises `SelmaError` if it fails."""
        self.say(f"\n$ {line}")
        started = time.monotonic()
        self.run_command(shlex.split(line), {**self.environment, **environment})
        self.log.append((line, time.monotonic() - started))

    def convert_annotated(self, source: Path) -> None:
        """Convert annotated patches; voxel sizes are left out, because structures of several sizes share one network."""
        self.run(f"nnunet-selma convert annotated {quoted(source)} -d {self.annotated_id} --spacing voxel")

    def plan(self, *configurations: str) -> None:
        """Let nnU-Net plan and preprocess the annotated dataset."""
        workers = " ".join("1" for _ in configurations)
        # nnU-Net's planner takes its thread count from this variable and fails at 0
        self.run(
            f"nnUNetv2_plan_and_preprocess -d {self.annotated_id} -c {' '.join(configurations)} "
            f"--verify_dataset_integrity -np {workers} -npfp 1",
            nnUNet_n_proc_DA="1",
        )

    def convert_unannotated(self, source: Path, options: str) -> None:
        """Cut tiles from unannotated volumes."""
        self.run(f"nnunet-selma convert unannotated {quoted(source)} -d {self.unlabelled_id} --spacing voxel {options}")

    def settings(self, dataset_id: int, plans: str, assignments: str) -> None:
        """Change settings in plans."""
        self.run(f"nnunet-selma settings -d {dataset_id} -p {quoted(plans)} {assignments}")

    def train(self, training: Training) -> None:
        """Train, or continue where a killed training wrote its last checkpoint."""
        t = training
        folder = self.fold_folder(t)
        killed = any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "final"))
        self.run(
            f"nnUNetv2_train {t.dataset_id} {t.configuration} {t.fold} -tr {t.trainer} -p {quoted(t.plans)} "
            f"-device {self.device}{' --c' if killed else ''}"
        )

    def predict(self, training: Training, images: Path, output: Path, options: str = "") -> None:
        """Segment the images of a folder with a trained model."""
        self.run(
            f"nnUNetv2_predict -d {training.dataset_id} -i {quoted(images)} -o {quoted(output)} {training.model} "
            f"-device {self.device} {options}".rstrip()
        )

    def fold_folder(self, training: Training) -> Path:
        """Folder with the results of a training."""
        t = training
        run = f"{t.trainer}__{t.plans}__{t.configuration}"
        return self.folders.results / self.folders.dataset(t.dataset_id) / run / f"fold_{t.fold}"
