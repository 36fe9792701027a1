"""The state of an annotation loop, as text for the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import isnan

import numpy as np

from nnunet_selma.annotation.next_commands import next_commands
from nnunet_selma.annotation.rounds import Standing
from nnunet_selma.annotation.validations import Validation, mean_and_interval
from nnunet_selma.errors import counted

_WEAK = 5
"""Greatest number of structures, and of brains, that are listed, the weakest first."""


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
    unsaved = [
        f"{entry.cube.name} ({', '.join(p.name for p in entry.cube.unsaved)})"
        for entry in state.cubes
        if entry.cube.unsaved
    ]
    if unsaved:
        yield f"  painted and not saved: {', '.join(unsaved)}"
    if corrected := [entry.cube.name for entry in state.cubes if entry.case is not None and not entry.current]:
        yield f"  changed since they were converted: {', '.join(corrected)}"


def _dataset_lines(state: Standing) -> Iterator[str]:
    if state.dataset is None:
        yield f"dataset {state.dataset_id}: not made yet"
    for number, entry in enumerate(state.history, start=1):
        yield (
            f"dataset {state.dataset_id}, version {number} ({entry['date'][:10]}): {counted(entry['cases'], 'case')}, {len(entry['added'])} new, "
            f"{len(entry['changed'])} corrected, {len(entry['removed'])} taken out"
        )
    if state.stale and state.planned:
        yield f"  not preprocessed as the dataset is: {', '.join(state.stale)}"


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
