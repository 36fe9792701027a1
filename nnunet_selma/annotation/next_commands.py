"""The next commands of an annotation loop, ready to be typed."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.rounds import CubeState, Standing
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.annotated import AnnotatedSettings

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


def next_commands(state: Standing) -> list[str]:
    """Lines to type next, or to do by hand; a line of words begins with #."""
    unsaved = [entry for entry in state.cubes if entry.cube.unsaved and not entry.left_out]
    waiting = [entry.cube for entry in state.cubes if entry.waiting and not entry.cube.unsaved]
    lines = _taking(unsaved)
    converting = ["nnunet-selma", "convert", "annotated", str(state.source), "-d", str(state.dataset_id), *_name(state)]
    if waiting or not all(entry.current for entry in unsaved):
        lines += [*annotating([cube.folder for cube in waiting]), f"# then {shlex.join(converting)}"]
        if waiting:
            without = shlex.join([*converting, "--without-unchanged"])
            lines.append(f"# or, to leave out for now what is not annotated: {without}")
        if any(cube.suggestion != "empty" for cube in waiting):
            as_is = shlex.join([*converting, "--as-is"])
            lines.append(f"# or, to take suggestions of the model that are right as they are: {as_is} CUBE …")
        return lines
    if any(entry.to_convert for entry in state.cubes):
        return [*lines, shlex.join(converting)]
    if state.dataset is None:
        return lines
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


def annotating(folders: Sequence[Path]) -> list[str]:
    """Lines that say how to annotate the cubes in these folders; none without cubes."""
    if not folders:
        return []
    return [
        f"# annotate {', '.join(folder.name for folder in folders)}, as README.md in the folder says, for example",
        shlex.join(["nnunet-selma", "view", str(folders[0])]),
    ]


def _taking(unsaved: Sequence[CubeState]) -> list[str]:
    """Lines that say how to take what was painted in cubes and not saved; the command is to be typed where a label is not converted yet."""
    lines = []
    for entry in unsaved:
        view = shlex.join(["nnunet-selma", "view", str(entry.cube.folder)])
        words = f"# {entry.cube.name}: take what was painted and not saved, or remove it, as this command says"
        lines += [f"{words}: {view}"] if entry.current else [words, view]
    return lines


def _name(state: Standing) -> list[str]:
    """The option that names the dataset, where it has another name than by default."""
    name = AnnotatedSettings.name if state.dataset is None else state.dataset.partition("_")[2]
    return [] if name == AnnotatedSettings.name else ["--name", name]


def _proposing(state: Standing, model: str) -> str:
    """The command for the next round: the same sources and settings as in the last one, with the model.

    Rounds of earlier versions did not record the sources; there the files of the brains are named.
    """
    files = [path for *paths, _ in state.proposal["brains"].values() for path in paths]
    sources = shlex.join(state.proposal.get("sources", files))
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
    return f"nnunet-selma propose {sources} {shlex.join(words)}"


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
