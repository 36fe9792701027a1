"""Proposing cubes: candidates are looked at, some are chosen and recorded, and their folders are written one by one."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.brains import Brain, brain_fingerprint, open_brains
from nnunet_selma.annotation.candidates import Candidate, candidates_of, image_suffix
from nnunet_selma.annotation.choosing import Choice, beta_of, choose_cubes
from nnunet_selma.annotation.cubes import PARTIAL, write_cube
from nnunet_selma.annotation.instructions import instructions, named_classes
from nnunet_selma.annotation.layout import CUBE, file_hash
from nnunet_selma.annotation.record import CubeRecord, settings_as_json
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.annotation.sheet import draw_sheet
from nnunet_selma.annotation.uncertainty import Prediction, StoredPrediction, first_answer, measured
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.json_files import write_text
from nnunet_selma.running.locks import exclusive
from nnunet_selma.running.progress import Progress, silent

SHEET, README = "sheet.png", "README.md"
_CHANGED = (
    "{folder}: holds a round that was interrupted, with {name} {there}, and now it is {now}; repeat the command as it was, or choose another folder "
    "with -o"
)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The cubes of a round."""

    folder: Path
    round: int
    cubes: list[dict[str, Any]]
    """Content of the `cube.json` of each."""
    candidates: int
    """Candidates that were looked at; 0 if an interrupted round went on."""


def propose(
    sources: Sequence[Path],
    folder: Path,
    settings: ProposalSettings,
    *,
    prediction: Prediction | None = None,
    probabilities: Sequence[Path] = (),
    progress: Progress[Any] = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Proposal:
    """Choose cubes and write them; a folder that holds cubes gets a further round, and an interrupted round goes on.

    Args:
        sources: brains, or folders of brains.
        folder: folder for the cubes.
        settings: options.
        prediction: a model that is computed on the candidates.
        probabilities: instead, `OUT_probabilities.ome.zarr` of every brain, in their order.
        progress: shows the work.
        say: takes sentences about what was passed by.

    Raises:
        SelmaError: brains, model or folder cannot be used, no candidate is left, or an interrupted round had other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise SelmaError(f"{folder}: is a file; give a folder with -o")
    brains, sentences = open_brains(sources, settings, leave_out=folder, progress=progress)
    for sentence in sentences:
        say(sentence)
    if probabilities:
        prediction = _stored(brains, probabilities)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock") as alone:
        if not alone:
            raise SelmaError(f"{folder}: another proposal is writing there; wait for it")
        return _propose(sources, brains, folder, settings, prediction, progress, say)


def _stored(brains: Sequence[Brain], probabilities: Sequence[Path]) -> StoredPrediction:
    """Predictions in files, one for each brain."""
    if len(probabilities) != len(brains):
        raise SelmaError(
            f"{counted(len(brains), 'brain')} and {counted(len(probabilities), 'file')} of probabilities; give one for each brain, in the order "
            f"{', '.join(brain.name for brain in brains)}"
        )
    return StoredPrediction({brain.name: path for brain, path in zip(brains, probabilities, strict=True)})


def _propose(
    sources: Sequence[Path],
    brains: Sequence[Brain],
    folder: Path,
    settings: ProposalSettings,
    prediction: Prediction | None,
    progress: Progress[Any],
    say: Callable[[str], None],
) -> Proposal:
    record = CubeRecord.at(folder)
    identity = {
        "settings": settings_as_json(settings),
        "seed": settings.seed,
        "model": None if prediction is None else prediction.fingerprint,
        "with_model": prediction is not None,
        "brains": {b.name: [*map(str, b.files), brain_fingerprint(b, settings.scene)] for b in brains},
    }
    looked_at = 0
    if record.unfinished is not None:
        _check_same(folder, record.unfinished, identity)
        say(f"{folder}: going on with round {len(record.rounds)}, whose cubes are chosen")
    else:
        _check_channels(folder, record, len(brains[0].channels))
        choices, looked_at = _choose(brains, settings, record, prediction, progress)
        if not choices:
            raise SelmaError(
                f"{folder}: no candidate is left that touches no earlier cube; give more brains",
                option="choose a smaller --size",
            )
        if len(choices) < settings.count:
            say(
                f"{counted(len(choices), 'cube')} instead of {settings.count}: no other candidate is free that touches none of them"
            )
        numbers = range(len(record.cubes) + 1, len(record.cubes) + len(choices) + 1)
        suffixes = (settings.scene, settings.time)
        cubes = [
            _content(number, choice, settings, len(record.rounds) + 1, *suffixes)
            for number, choice in zip(numbers, choices, strict=True)
        ]
        record = record.begin({**identity, "sources": [str(source.absolute()) for source in sources]}, cubes)
    cubes = _write(brains, folder, record, prediction, progress)
    classes = None if prediction is None else dict(prediction.classes(brains[0]))
    record = record.finish(cubes, _write_instructions(folder / README, classes, record.readme, say))
    there = [cube for cube in record.cubes if (folder / cube["name"] / CUBE).is_file()]
    draw_sheet(folder / SHEET, there, [folder / cube["name"] for cube in there], brains)
    return Proposal(folder=folder, round=len(record.rounds), cubes=cubes, candidates=looked_at)


def _write_instructions(
    path: Path, classes: dict[int, str] | None, written: str | None, say: Callable[[str], None]
) -> str | None:
    """Write the instructions, unless a person has changed them; returns the hash of those that were written last.

    Those of a round with a model name its classes, and stay when a round without a model follows.
    """
    text = instructions(classes)
    if path.exists():
        unchanged = path.is_file() and file_hash(path) in (written, _hash(text), _hash(instructions(None)))
        if not unchanged:
            named = "" if classes is None else f"; classes of the model: {named_classes(classes)}"
            say(f"{path}: is not as it was written, and stays as it is{named}")
        if not unchanged or classes is None:
            return written
    write_text(path, text)
    return file_hash(path)


def _hash(text: str) -> str:
    """SHA-256 of a text as `write_text` writes it."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _check_same(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `SelmaError` if an interrupted round had other settings, another model or other brains."""
    for name in ("settings", "model", "with_model", "brains"):
        if there[name] != now[name]:
            if isinstance(there[name], dict):
                key = next(k for k in {**there[name], **now[name]} if there[name].get(k) != now[name].get(k))
                text = _CHANGED.format(folder=folder, name=key, there=there[name].get(key), now=now[name].get(key))
            else:
                text = _CHANGED.format(folder=folder, name=name, there=there[name], now=now[name])
            raise SelmaError(text)


def _check_channels(folder: Path, record: CubeRecord, channels: int) -> None:
    """Raise `SelmaError` if earlier cubes have another number of channels, because no dataset could be made of all."""
    for cube in record.cubes:
        if (folder / cube["name"] / CUBE).is_file() and len(cube["images"]) != channels:
            raise SelmaError(
                f"{folder}: {cube['name']} has {counted(len(cube['images']), 'channel')}, and cubes would now have {channels}; choose the same with "
                "--channel, or another folder with -o"
            )


def _choose(
    brains: Sequence[Brain],
    settings: ProposalSettings,
    record: CubeRecord,
    prediction: Prediction | None,
    progress: Progress[Any],
) -> tuple[list[Choice], int]:
    """The choices of a round, and the number of candidates that were looked at."""
    suffix = image_suffix(settings.scene, settings.time)
    with_model = 1 + sum(bool(one_round["with_model"]) for one_round in record.rounds)
    return choose_cubes(
        [candidates_of(brain, settings.size, suffix, progress) for brain in brains],
        settings,
        record.earlier(),
        None if prediction is None else lambda pool: _scores(pool, prediction, progress),
        round_number=len(record.rounds) + 1,
        beta=beta_of(with_model),
        progress=progress,
    )


def _scores(pool: Sequence[Candidate], prediction: Prediction, progress: Progress[Any]) -> list[dict[str, float]]:
    """Score of each class for each candidate."""
    scores: dict[int, dict[str, float]] = {}
    for brain in {candidate.brain.name: candidate.brain for candidate in pool}.values():
        numbers = [i for i, candidate in enumerate(pool) if candidate.brain.name == brain.name]
        measuring = measured(prediction, brain, [pool[i].box for i in numbers])
        for _ in progress(numbers, f"entropy of candidates in {brain.name}"):
            at, score = next(measuring)
            scores[numbers[at]] = score
    return [scores[i] for i in range(len(pool))]


def _content(
    number: int, choice: Choice, settings: ProposalSettings, round_number: int, scene: str | None, time: int | None
) -> dict[str, Any]:
    """The part of `cube.json` that is known before the cube is written."""
    candidate = choice.candidate
    brain = candidate.brain
    return {
        "number": number,
        "name": f"cube_{number:04d}",
        "round": round_number,
        "brain": brain.name,
        "path": str(brain.path),
        "channel_paths": [str(volume.path) for volume in brain.channels],
        "scene": scene,
        "channels": None if settings.channels is None else list(settings.channels),
        "time": time,
        "level": settings.level,
        "level_factor_zyx": list(brain.first.level_factor_zyx),
        "brain_shape_zyx": list(brain.shape),
        "start_zyx": list(candidate.start),
        "shape_zyx": list(candidate.shape),
        "spacing_um_zyx": list(brain.spacing_um_zyx),
        "region_zyx": list(candidate.region),
        "reason": {"words": choice.words, "numbers": choice.numbers},
    }


def _write(
    brains: Sequence[Brain], folder: Path, record: CubeRecord, prediction: Prediction | None, progress: Progress[Any]
) -> list[dict[str, Any]]:
    """Write the cubes of the last round that are not there; returns the content of each."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # of a killed process
    by_name = {brain.name: brain for brain in brains}
    cubes = [cube for cube in record.cubes if cube["round"] == len(record.rounds)]
    written = []
    for cube in progress(cubes, "writing cubes"):
        brain, suggestion = by_name[cube["brain"]], None
        if prediction is not None and not (folder / cube["name"]).exists():
            z, y, x = (slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
            suggestion = first_answer(prediction, brain, (z, y, x))
        written.append(write_cube(folder / cube["name"], brain, cube, suggestion))
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return written
