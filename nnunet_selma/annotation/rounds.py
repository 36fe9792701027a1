"""The state of an annotation loop: cubes handed over, annotated, converted and trained on; validation of each version of the dataset; next commands.

A training counts for the version of the dataset that was there when it began: nnU-Net writes `debug.json` then. nnU-Net replaces the validation of
a fold when the fold is trained again, so that it is kept in `selma_rounds.json`, the only file that is written here.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.growing import LAYOUT
from nnunet_selma.annotation.layout import RECORD, label_hash
from nnunet_selma.annotation.returned import Cube, read_cubes
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.nnunet.settings import KEY as SETTINGS
from nnunet_selma.running.json_files import read_json, write_json

KEPT = "selma_rounds.json"
"""File in the dataset's folder of results that keeps the validation of each training."""
_RESAMPLES = 2000
_OPTIONS = {
    "size": "--size",
    "seed": "--seed",
    "pool": "--pool",
    "scene": "--scene",
    "channels": "--channel",
    "time": "--time",
    "level": "--level",
    "spacing_um_zyx": "--spacing",
    "on_bad_slice": "--on-bad-slice",
    "slice_pattern": "--slice-pattern",
}
"""Setting of a proposal to its option, for the next proposal to repeat."""
_WEAK = 5
"""Number of brains that are listed, the weakest first."""


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
    """True if the label as it is was left out of the dataset, as asked for."""

    @property
    def waiting(self) -> bool:
        """True if nobody has annotated the cube, or said that it is left out."""
        return not self.changed and self.case is None and not self.left_out


@dataclass(frozen=True, kw_only=True)
class Training:
    """A fold in nnUNet_results."""

    model: str
    """Trainer, plans and configuration, as in the name of its folder."""
    fold: str
    begun: datetime
    version: int
    """Number of the version of the dataset, from 1, that was there when the training began."""
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Score:
    """Dice of one case and class in the validation of a training."""

    case: str
    brain: str
    label: str
    dice: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation of all folds of a model that were trained on one version of the dataset."""

    version: int
    model: str
    scores: list[Score]
    seen: bool
    """True if the cases were also trained on, as in fold `all`, or where there is a single brain."""

    def of_cases(self) -> dict[str, float]:
        """Case to the mean Dice of its classes; cases in which no class has a value are left out."""
        values: dict[str, list[float]] = {}
        for score in self.scores:
            if not isnan(score.dice):
                values.setdefault(score.case, []).append(score.dice)
        return {case: float(np.mean(of_case)) for case, of_case in values.items()}


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
    """Cases that are not preprocessed as they are."""
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
    existing = sorted(folders.raw.glob(f"Dataset{dataset_id:03d}_*")) if folders.raw.is_dir() else []
    if not existing and source is None:
        raise SelmaError(f"dataset {dataset_id}: there is none in {folders.raw}; give the folder of cubes")
    name = folders.dataset(dataset_id) if existing else None
    manifest: dict[str, Any] = {}
    if name is not None:
        path = folders.raw / name / MANIFEST
        manifest = read_json(path) if path.is_file() else {}
        if manifest.get("layout") != LAYOUT:
            raise SelmaError(f"{folders.raw / name}: was not made from cubes of nnunet-selma propose; give another id")
    folder = source or Path(manifest["settings"]["source"])
    cases: dict[str, Any] = manifest.get("cases", {})
    left_out: dict[str, Any] = manifest.get("left_out_cubes", {})
    history: list[dict[str, Any]] = manifest.get("history", [])
    preprocessed, results = folders.preprocessed / str(name), folders.results / str(name)
    splits_file = preprocessed / "splits_final.json"
    splits: Any = read_json(splits_file) if splits_file.is_file() else []
    versions = [_date(entry["date"]) for entry in history]
    trainings = list(_trainings(results, versions))
    return Standing(
        dataset_id=dataset_id,
        source=folder,
        dataset=name,
        cubes=[_state(cube, cases, left_out) for cube in read_cubes(folder)],
        proposal=_last_proposal(folder),
        history=history,
        stale=_stale(preprocessed, history),
        planned=any(preprocessed.glob("*Plans.json")),
        folds=_folds(splits),
        trainings=trainings,
        validations=_validations(results, trainings, versions, cases, splits, _classes(folders.raw / str(name))),
        first_model=_first_model(preprocessed, folders.results),
        results=results,
    )


def _last_proposal(folder: Path) -> dict[str, Any]:
    rounds = read_json(folder / RECORD).get("rounds") or [{}]
    return dict(rounds[-1])


def _date(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _changed_at(path: Path) -> datetime:
    """Time of the last change of a file, in whole seconds, as dates in the manifest are."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), tz=timezone.utc)


def _state(cube: Cube, cases: Mapping[str, Any], left_out: Mapping[str, Any]) -> CubeState:
    record = next(((case, known) for case, known in cases.items() if known["cube"] == cube.name), None)
    label = label_hash(cube.label)
    return CubeState(
        cube=cube,
        case=record[0] if record else None,
        changed=label != cube.handed_over,
        current=record is not None and record[1]["label_sha256"] == label,
        left_out=left_out.get(cube.name, {}).get("label_sha256") == label,
    )


def _stale(preprocessed: Path, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Cases that a configuration which nnU-Net has preprocessed lacks, or holds from before their last change."""
    written = {case: _date(entry["date"]) for entry in history for case in (*entry["added"], *entry["changed"])}
    folders = {path.parent for path in preprocessed.glob("*/*.pkl")}
    if not folders:
        return sorted(written)
    newest = max(folders, key=lambda folder: max(path.stat().st_mtime for path in folder.glob("*.pkl")))
    files = {case: newest / f"{case}.pkl" for case in written}
    return sorted(case for case, path in files.items() if not path.is_file() or _changed_at(path) < written[case])


def _first_model(preprocessed: Path, all_results: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration for the first training: plans that were written last are those that a user wants, as those of a small network.

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


def _folds(splits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Folds that hold out different cases."""
    different: dict[tuple[str, ...], str] = {}
    for number, split in enumerate(splits):
        different.setdefault(tuple(split["val"]), str(number))
    return list(different.values()) if len(different) > 1 else ["all"]


def _classes(dataset: Path) -> dict[str, str]:
    """Value to class, as in `dataset.json`."""
    path = dataset / "dataset.json"
    labels = read_json(path)["labels"] if path.is_file() else {}
    return {str(value): name for name, value in labels.items()}


def _trainings(results: Path, versions: Sequence[datetime]) -> Iterator[Training]:
    """Folds whose training began after the first version of the dataset."""
    for begin in sorted(results.glob("*__*__*/fold_*/debug.json")):
        fold, begun = begin.parent, _changed_at(begin)
        final = fold / "checkpoint_final.pth"
        version = sum(date <= begun for date in versions)
        if version:
            yield Training(
                model=fold.parent.name,
                fold=fold.name.removeprefix("fold_"),
                begun=begun,
                version=version,
                finished=final.is_file() and _changed_at(final) >= begun,
            )


def _validations(
    results: Path,
    trainings: Sequence[Training],
    versions: Sequence[datetime],
    cases: Mapping[str, Any],
    splits: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
) -> list[Validation]:
    """Validations of all versions, oldest first: those that were kept, and those that are new, which are kept from now on.

    Trainings from before the first version are of a dataset that was removed, and are dropped.
    """
    path = results / KEPT
    kept: dict[str, Any] = read_json(path) if path.is_file() else {"trainings": []}
    entries = {
        (entry["model"], entry["fold"], entry["begun"]): entry
        for entry in kept["trainings"]
        if versions and _date(entry["begun"]) >= versions[0]
    }
    for training in trainings:
        summary = results / training.model / f"fold_{training.fold}" / "validation" / "summary.json"
        if summary.is_file() and _changed_at(summary) >= training.begun:
            begun = training.begun.isoformat()
            earlier = entries.get((training.model, training.fold, begun), {})
            entries[training.model, training.fold, begun] = {
                "model": training.model,
                "fold": training.fold,
                "begun": begun,
                "version": training.version,
                "seen": earlier.get("seen", _seen(training.fold, splits)),  # the folds may have changed since
                "dice": _dice(read_json(summary), classes),
            }
    if list(entries.values()) != kept["trainings"]:
        write_json(path, {"trainings": list(entries.values())})
    scores: dict[tuple[int, str, bool], dict[tuple[str, str], Score]] = {}
    for entry in entries.values():
        of_version = scores.setdefault((entry["version"], entry["model"], entry["seen"]), {})
        for case, of_case in entry["dice"].items():
            brain = cases[case]["brain"] if case in cases else case
            for label, dice in of_case.items():
                value = nan if dice is None else float(dice)
                of_version[case, label] = Score(case=case, brain=brain, label=label, dice=value)
    return [
        Validation(version=version, model=model, seen=seen, scores=list(of_version.values()))
        for (version, model, seen), of_version in sorted(scores.items())
    ]


def _seen(fold: str, splits: Sequence[Mapping[str, Any]]) -> bool:
    if not fold.isdigit() or int(fold) >= len(splits):
        return True
    return bool({*splits[int(fold)]["train"]} & {*splits[int(fold)]["val"]})


def _dice(summary: Mapping[str, Any], classes: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Case to class to Dice in nnU-Net's `summary.json`; None where neither side shows the class."""
    return {
        Path(case["reference_file"]).name.split(".")[0]: {
            classes.get(value, value): None if isnan(dice := float(metrics["Dice"])) else dice
            for value, metrics in case["metrics"].items()
        }
        for case in summary["metric_per_case"]
    }


def mean_and_interval(values: Mapping[str, float], brains: Mapping[str, str]) -> tuple[float, float, float]:
    """Mean over cases, and its 95 % interval by resampling brains with all their cases; the interval is NaN for a single brain.

    Args:
        values: case to value.
        brains: case to its brain.
    """
    groups: dict[str, list[float]] = {}
    for case, value in values.items():
        groups.setdefault(brains[case], []).append(value)
    mean = float(np.mean(list(values.values()))) if values else nan
    if len(groups) < 2:
        return mean, nan, nan
    sums, counts = np.array([sum(g) for g in groups.values()]), np.array([len(g) for g in groups.values()])
    drawn = np.random.default_rng(0).integers(len(groups), size=(_RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, float(low), float(high)


def as_text(state: Standing) -> str:
    """The state and the next commands, for the terminal."""
    lines = [f"cubes: {state.source}", *_cube_lines(state), *_dataset_lines(state), *_training_lines(state)]
    lines += _validation_lines(state)
    commands = [f"  {line}" for line in next_commands(state)]
    return "\n".join([*lines, "next:", *commands])


def _cube_lines(state: Standing) -> Iterator[str]:
    for number in sorted({entry.cube.round for entry in state.cubes}):
        of_round = [entry for entry in state.cubes if entry.cube.round == number]
        changed = sum(entry.changed for entry in of_round)
        converted = sum(entry.case is not None for entry in of_round)
        brains = Counter(entry.cube.brain for entry in of_round)
        where = ", ".join(f"{brain} {count}" for brain, count in sorted(brains.items()))
        yield (
            f"round {number}: {counted(len(of_round), 'cube')} handed over ({where}), {changed} changed since, {converted} in the dataset"
        )
    if waiting := [entry.cube.name for entry in state.cubes if entry.waiting]:
        yield f"  as handed over: {', '.join(waiting)}"
    if left_out := [entry.cube.name for entry in state.cubes if entry.left_out]:
        yield f"  left out: {', '.join(left_out)}"
    if corrected := [entry.cube.name for entry in state.cubes if entry.case is not None and not entry.current]:
        yield f"  changed since they were converted: {', '.join(corrected)}"


def _dataset_lines(state: Standing) -> Iterator[str]:
    if state.dataset is None:
        yield f"dataset {state.dataset_id}: not made yet"
    for number, entry in enumerate(state.history, start=1):
        yield (
            f"dataset {state.dataset_id}, version {number} ({entry['date'][:10]}): {counted(entry['cases'], 'case')}, {len(entry['added'])} new, "
            f"{len(entry['changed'])} corrected"
        )
    if state.stale and state.planned:
        yield f"  not preprocessed as they are: {', '.join(state.stale)}"


def _training_lines(state: Standing) -> Iterator[str]:
    for training in state.trainings:
        cases = state.history[training.version - 1]["cases"]
        done = "trained" if training.finished else "begun, not finished,"
        yield (
            f"{training.model}, fold {training.fold}: {done} on version {training.version} ({counted(cases, 'case')} in all folds)"
        )


def _validation_lines(state: Standing) -> Iterator[str]:
    if not state.validations:
        yield "validation: none yet"
        return
    yield "validation, mean Dice of cubes (95 % interval over brains):"
    latest: dict[str, Validation] = {}
    for validation in state.validations:
        values = validation.of_cases()
        brains = {score.case: score.brain for score in validation.scores}
        seen = "; trained on the same cubes, says nothing about others" if validation.seen else ""
        brain_count = len({brains[case] for case in values})
        yield (
            f"  version {validation.version}, {validation.model}: {_in_words(values, brains)}, n {counted(len(values), 'cube')} of {counted(brain_count, 'brain')}{seen}"
        )
        before = latest.get(validation.model)
        if before is not None and not validation.seen and not before.seen:
            earlier = before.of_cases()
            change = {case: values[case] - earlier[case] for case in values if case in earlier}
            if change:
                yield (
                    f"    change from version {before.version}: {_in_words(change, brains, sign='+')}, n {counted(len(change), 'cube')} in both"
                )
        latest[validation.model] = validation
    yield from _weak_lines(state.validations[-1])


def _weak_lines(validation: Validation) -> Iterator[str]:
    """Means of classes and of brains in a validation, the weakest first."""
    for title, key in (("structures", "label"), ("brains", "brain")):
        values: dict[str, list[float]] = {}
        for score in validation.scores:
            if not isnan(score.dice):
                values.setdefault(getattr(score, key), []).append(score.dice)
        means = sorted((float(np.mean(of_name)), name, len(of_name)) for name, of_name in values.items())
        if len(means) > 1:
            words = ", ".join(f"{name} {mean:.3f} (n {count})" for mean, name, count in means[:_WEAK])
            yield f"  weakest {title} in version {validation.version}: {words}"


def _in_words(values: Mapping[str, float], brains: Mapping[str, str], sign: str = "") -> str:
    mean, low, high = mean_and_interval(values, brains)
    interval = "no interval" if isnan(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{mean:{sign}.3f} ({interval})"


def next_commands(state: Standing) -> list[str]:
    """Lines to type next, or to do by hand; a line of words begins with #."""
    waiting = [entry.cube for entry in state.cubes if entry.waiting]
    converting = ["nnunet-selma", "convert", "annotated", str(state.source), "-d", str(state.dataset_id), *_name(state)]
    if waiting:
        return [
            f"# annotate {', '.join(cube.name for cube in waiting)}, as README.md in the folder says, for example",
            f"nnunet-selma view {shlex.quote(str(waiting[0].folder))}",
            f"# then {shlex.join(converting)}",
            f"# or, to leave out for now what is not annotated: {shlex.join([*converting, '--without-unchanged'])}",
        ]
    if any(entry.changed and not entry.current and not entry.left_out for entry in state.cubes):
        return [shlex.join(converting)]
    if state.dataset is None:
        return []
    lines = []
    trainer, plans, configuration = _model(state)
    lines += [_preprocessing(state, plans, configuration)] if state.stale else []
    version = len(state.history)
    done = {
        t.fold: t for t in state.trainings if t.version == version and t.model == f"{trainer}__{plans}__{configuration}"
    }
    missing = [fold for fold in state.folds if fold not in done or not done[fold].finished]
    for fold in missing:
        training = ["nnUNetv2_train", str(state.dataset_id), configuration, fold, "-tr", trainer, "-p", plans]
        lines.append(shlex.join([*training, *(["--c"] if fold in done else [])]))
    if missing:
        return [*lines, f"nnunet-selma round -d {state.dataset_id}"]
    return [*lines, _proposing(state, f"{trainer}__{plans}__{configuration}")]


def _name(state: Standing) -> list[str]:
    """The option that names the dataset, where it has another name than by default."""
    name = AnnotatedSettings.name if state.dataset is None else state.dataset.partition("_")[2]
    return [] if name == AnnotatedSettings.name else ["--name", name]


def _proposing(state: Standing, model: str) -> str:
    """The command for the next round: the same brains and settings as in the last one, with the model."""
    brains = shlex.join(path for path, _ in state.proposal["brains"].values())
    settings, defaults = state.proposal["settings"], ProposalSettings()
    words = ["-n", str(settings["count"]), "-o", str(state.source)]
    for name, option in _OPTIONS.items():
        default = getattr(defaults, name)
        value: Any = settings.get(name, default)
        if value != default:
            values = (
                [",".join(map(str, value))] if option == "--spacing" else value if isinstance(value, list) else [value]
            )
            words += [option, *map(str, values)]
    words += ["--model", str(state.results / model), *(["-f", "all"] if state.folds == ["all"] else [])]
    return f"nnunet-selma propose {brains} {shlex.join(words)}"


def _model(state: Standing) -> tuple[str, str, str]:
    """Trainer, plans and configuration of the newest training, or those to begin with."""
    if not state.trainings:
        return state.first_model
    newest = max(state.trainings, key=lambda training: training.begun)
    trainer, plans, configuration = newest.model.split("__", 2)
    return trainer, plans, configuration


def _preprocessing(state: Standing, plans: str, configuration: str) -> str:
    """nnU-Net's command for a dataset that is new or has grown; plans that are there stay, so that versions can be compared and weights fit."""
    if state.planned:
        return f"nnUNetv2_preprocess -d {state.dataset_id} -plans_name {plans} -c {configuration}"
    return f"nnUNetv2_plan_and_preprocess -d {state.dataset_id} -c {configuration} --verify_dataset_integrity"
