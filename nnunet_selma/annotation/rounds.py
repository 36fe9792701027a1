"""The state of an annotation loop: cubes handed over, annotated, converted and trained on, and the validation of each version of the dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.growing import LAYOUT, read_manifest
from nnunet_selma.annotation.kept_validations import keep_validations, validations_of
from nnunet_selma.annotation.layout import RECORD, label_hash
from nnunet_selma.annotation.questions import reason_left_out
from nnunet_selma.annotation.returned import Cube, read_cubes
from nnunet_selma.annotation.trainings import Training, folds_to_train, read_trainings, stale_cases
from nnunet_selma.annotation.validations import Validation
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.settings import KEY as SETTINGS
from nnunet_selma.running.json_files import read_json


@dataclass(frozen=True, kw_only=True)
class CubeState:
    """A cube and its place in the loop."""

    cube: Cube
    case: str | None
    """Its case in the dataset; None before it was converted."""
    changed: bool
    """True if the label file differs from that which was handed over."""
    current: bool
    """True if the dataset holds the label as it is."""
    left_out: bool
    """True if the cube as it is was left out of the dataset, as asked for."""

    @property
    def waiting(self) -> bool:
        """True if nobody has annotated the cube, or said that it is left out."""
        return not self.changed and self.case is None and not self.left_out

    @property
    def to_convert(self) -> bool:
        """True if the label is new or changed since the last version of the dataset."""
        return (self.changed or self.case is not None) and not self.current and not self.left_out


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state of an annotation loop."""

    dataset_id: int
    source: Path
    dataset: str | None
    """Folder name of the dataset; None before the first conversion."""
    cubes: list[CubeState]
    proposal: dict[str, Any]
    """Brains and settings of the last proposal, as in `selma_cubes.json`."""
    history: list[dict[str, Any]]
    """Versions of the dataset, as in its manifest."""
    stale: list[str]
    """Cases that are not preprocessed as they are, or still are though they were taken out."""
    planned: bool
    """True if nnU-Net has planned the dataset."""
    folds: list[str]
    """Folds that hold out different cases; only `all` where there is a single group."""
    trainings: list[Training]
    validations: list[Validation]
    first_model: tuple[str, str, str]
    """Trainer, plans and configuration to use where nothing is trained yet."""
    results: Path


def standing(dataset_id: int, folders: Folders, source: Path | None = None) -> Standing:
    """Gather the state of the loop of a dataset, and keep validations that are new.

    Args:
        dataset_id: id of the dataset.
        folders: nnU-Net's folders.
        source: folder of cubes; None for that from which the dataset was made last.

    Raises:
        SelmaError: there is neither dataset nor folder, or the dataset was not made from cubes.
    """
    name, manifest = _dataset(dataset_id, folders)
    if name is None and source is None:
        raise SelmaError(f"dataset {dataset_id}: there is none in {folders.raw}; give the folder of cubes")
    folder = source or Path(manifest["settings"]["source"])
    cases: dict[str, Any] = manifest.get("cases", {})
    left_out: dict[str, Any] = manifest.get("left_out_cubes", {})
    history: list[dict[str, Any]] = manifest.get("history", [])
    preprocessed, results = folders.preprocessed / str(name), folders.results / str(name)
    splits_file = preprocessed / "splits_final.json"
    splits: Any = read_json(splits_file) if splits_file.is_file() else []
    versions = [datetime.fromisoformat(entry["date"]) for entry in history]
    trainings = list(read_trainings(results, versions))
    classes = _classes(folders.raw / str(name))
    kept = keep_validations(results, trainings, versions[0] if versions else None, splits, classes)
    removed = {case: record for entry in history for case, record in entry["removed"].items()}
    brains = {case: record["brain"] for case, record in {**removed, **cases}.items()}
    return Standing(
        dataset_id=dataset_id,
        source=folder,
        dataset=name,
        cubes=[_state(cube, cases, left_out) for cube in read_cubes(folder)],
        proposal=_last_proposal(folder),
        history=history,
        stale=stale_cases(preprocessed, history),
        planned=any(preprocessed.glob("*Plans.json")),
        folds=folds_to_train(splits),
        trainings=trainings,
        validations=validations_of(kept, brains),
        first_model=_first_model(preprocessed, folders.results),
        results=results,
    )


def _dataset(dataset_id: int, folders: Folders) -> tuple[str | None, dict[str, Any]]:
    """Folder name and manifest of a dataset, None and empty where there is none; raises `SelmaError` for one that was not made from cubes."""
    if not folders.raw.is_dir() or not any(folders.raw.glob(f"Dataset{dataset_id:03d}_*")):
        return None, {}
    name = folders.dataset(dataset_id)
    manifest = read_manifest(folders.raw / name) or {}
    if manifest.get("layout") != LAYOUT:
        raise SelmaError(f"{folders.raw / name}: was not made from cubes of nnunet-selma propose; give another id")
    return name, manifest


def _last_proposal(folder: Path) -> dict[str, Any]:
    rounds = read_json(folder / RECORD).get("rounds") or [{}]
    return dict(rounds[-1])


def _state(cube: Cube, cases: Mapping[str, Any], left_out: Mapping[str, Any]) -> CubeState:
    case = next((name for name, record in cases.items() if record["cube"] == cube.name), None)
    label = label_hash(cube.label)
    return CubeState(
        cube=cube,
        case=case,
        changed=label != cube.handed_over,
        current=case is not None and cases[case]["label_sha256"] == label,
        left_out=reason_left_out(cube, label, left_out) is not None,
    )


def _first_model(preprocessed: Path, all_results: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration for the first training: the plans that were written last, such as those of a small network.

    The trainer is nnU-Net's, unless there is a pretraining to begin with, or the plans hold settings, which only trainers of this package read.
    """
    files = [path for path in preprocessed.glob("*lans*.json") if "manifest" not in path.stem]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    plans: Any = {} if newest is None else read_json(newest)
    configurations = list(plans.get("configurations", {})) or ["3d_fullres"]
    pretrained = any(all_results.glob("*/SelmaSSLTrainer__*"))
    return (
        "SelmaFinetuneTrainer" if pretrained or SETTINGS in plans else "nnUNetTrainer",
        "nnUNetPlans" if newest is None else newest.stem,
        "3d_fullres" if "3d_fullres" in configurations else configurations[0],
    )


def _classes(dataset: Path) -> dict[str, str]:
    """Value to class, as in `dataset.json`."""
    path = dataset / "dataset.json"
    labels = read_json(path)["labels"] if path.is_file() else {}
    return {str(value): name for name, value in labels.items()}
