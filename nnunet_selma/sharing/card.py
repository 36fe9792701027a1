"""The model card: README.md of a published folder, filled from the facts of the training.

What no file and no option says is said to be not known.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nnunet_selma.errors import counted
from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.sharing.card_commands import CardTexts, commands
from nnunet_selma.sharing.card_validation import validation_lines
from nnunet_selma.sharing.cite import citations, open_points
from nnunet_selma.sharing.licences import Licence, selma3d_in_words
from nnunet_selma.sharing.markdown import in_cell
from nnunet_selma.sharing.results import ResultFacts, folds_in_words, in_words
from nnunet_selma.sharing.validation import Validation
from nnunet_selma.structures import find_structure

SECTIONS = (
    "Model",
    "Intended use",
    "Training data",
    "Training",
    "Validation",
    "Limits",
    "How to use it",
    "Licence",
    "Citation",
)
"""Headings of a complete card."""


def model_card(
    facts: ResultFacts, texts: CardTexts, licence: Licence, parameters: int, validation: Validation | None
) -> str:
    """The whole card, front matter first.

    Args:
        facts: facts of the training.
        texts: texts of the publisher.
        licence: licence of the weights.
        parameters: number of trained parameters in the file of one fold.
        validation: scores by the rules of SELMA3D; None takes those of nnU-Net, where they are.
    """
    parts = {
        "Model": _model(facts, texts, parameters),
        "Intended use": _intended_use(facts),
        "Training data": _data(facts),
        "Training": _training(facts),
        "Validation": validation_lines(facts, validation),
        "Limits": _limits(facts, validation),
        "How to use it": commands(facts, texts),
        "Licence": _licence(licence, facts),
        "Citation": _citation(facts),
    }
    head = [
        _front_matter(facts, licence),
        f"# {texts.name}",
        texts.description or "Not known: a description by the publisher.",
    ]
    sections = [f"## {title}\n\n" + "\n".join(parts[title]) for title in SECTIONS]
    return "\n\n".join([*head, *sections]) + "\n"


def _front_matter(facts: ResultFacts, licence: Licence) -> str:
    purpose = "segmentation" if facts.kind == "segmentation" else "self-supervised-learning"
    tags = [
        "nnU-Net",
        *(("biology", "microscopy") if facts.unit == "um" or facts.light_sheet else ()),
        *(("light-sheet-microscopy",) if facts.light_sheet else ()),
        f"{len(facts.patch_size)}d",
        purpose,
        *(("SELMA3D",) if facts.data_of_selma3d else ()),
        *facts.structures,
    ]
    pipeline = "image-segmentation" if facts.kind == "segmentation" else "image-feature-extraction"
    lines = [f"license: {licence.on_hub}", "library_name: nnunetv2", f"pipeline_tag: {pipeline}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {json.dumps(tag, ensure_ascii=False)}" for tag in tags), "---"])


def _model(facts: ResultFacts, texts: CardTexts, parameters: int) -> list[str]:
    kind = (
        "a segmentation network of nnU-Net v2"
        if facts.kind == "segmentation"
        else "a pretrained network for nnU-Net v2"
    )
    channels = ", ".join(f"{number}: {name}" for number, name in enumerate(facts.channels))
    rows = {
        "kind": kind,
        "published by": texts.author or "not known",
        "network": f"`{facts.network}`, {parameters:,} parameters",
        "input": f"{counted(len(facts.channels), 'channel')} ({channels}), patches of {' × '.join(map(str, facts.patch_size))} voxels",
        **({"classes": _classes(facts)} if facts.kind == "segmentation" else {}),
        "voxel size": in_words(facts.spacing_zyx, facts.unit),
        "trained with": f"`{facts.trainer or facts.stored_trainer}`, plans `{facts.plans_name}`, configuration `{facts.configuration}`",
        "weights": f"{folds_in_words(facts)}, `{texts.checkpoint}` of the training, as `{CHECKPOINT}` and as safetensors, without optimiser",
        "weights began as": "<br>".join(_ancestors(facts)),
    }
    return ["| | |", "|---|---|", *(f"| {name} | {in_cell(text)} |" for name, text in rows.items())]


def _classes(facts: ResultFacts) -> str:
    return ", ".join(f"{name} ({_values(value)})" for name, value in facts.classes.items())


def _values(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _ancestors(facts: ResultFacts) -> list[str]:
    """A sentence for each origin of the weights, nearest first."""
    if facts.kind == "pretraining":
        return ["not known: a pretraining does not record it; SelmaSSLTrainer starts from random weights"]
    unrecorded = any(fold.ancestor is None for fold in facts.folds)
    sentences = [_ancestor(record) for record in facts.ancestors]
    return [*sentences, *(["not known: the checkpoint does not record it"] if unrecorded else [])]


def _ancestor(record: Mapping[str, Any]) -> str:
    match record.get("weights"):
        case "pretrained":
            by = record.get("pretext") or record.get("trainer") or "not known: by which training"
            length = f", {counted(record['epochs'], 'epoch')}" if record.get("epochs") is not None else ""
            steps = f", {counted(record['steps'], 'step')}" if record.get("steps") is not None else ""
            data = record.get("dataset") or "not known: on which data"
            return f"pretrained weights: {by} on {data}{length}{steps}, SHA-256 of the checkpoint `{record.get('sha256') or 'not known'}`"
        case "random":
            return "random weights"
        case "given":
            return "weights given as nnU-Net's -pretrained_weights; not known: which"
        case _:
            return "not known: the checkpoint does not record it"


def _intended_use(facts: ResultFacts) -> list[str]:
    near = f"a voxel size near {in_words(facts.spacing_zyx, facts.unit)}"
    scale = (
        "the resolution of the training data, of which no physical size was stated" if facts.unit == "voxel" else near
    )
    dimensions = "three-dimensional images" if len(facts.patch_size) == 3 else "images, slice by slice,"
    images = f"{dimensions} with {counted(len(facts.channels), 'channel')} ({', '.join(facts.channels)}) at {scale}"
    if facts.kind == "pretraining":
        return [
            f"A start for the training of a segmentation on {images}, like those it was pretrained on. It segments nothing by itself.",
        ]
    return [
        f"Segmentation of {', '.join(facts.classes)} in {images}, prepared and stained like the training data. For research.",
    ]


def _data(facts: ResultFacts) -> list[str]:
    data = facts.data
    lines = [f"- dataset: `{facts.dataset_name}`"]
    count = len(data.cases)
    number = facts.dataset.get("numTraining")
    if count:
        lines.append(f"- cases: {count}")
    else:
        lines.append(
            f"- cases: {number} by dataset.json; not known: which"
            if number
            else "- cases: not known: how many, and which"
        )
    if facts.structures:
        counts = ", ".join(f"{_title(name)} {cases}" for name, cases in facts.structures.items())
        lines.append(f"- cases by structure: {counts}")
    else:
        lines.append("- structures: not known: neither a manifest nor the names of the cases say")
    if data.groups:
        sizes = Counter(data.groups.values())
        lines.append(
            f"- groups (animal or brain, which no fold parts): {len(sizes)}, of {min(sizes.values())} to {max(sizes.values())} cases"
        )
    else:
        lines.append("- groups: not known: which cases are of one animal")
    lines.append(f"- voxel size of the data: {in_words(_median_spacing(facts), facts.unit)}, the median over the cases")
    lines.append(
        f"- licence of the data, as dataset.json has it: {facts.dataset.get('licence') or facts.dataset.get('license') or 'not known'}"
    )
    lines += _folds(facts)
    return lines


def _title(name: str) -> str:
    structure = find_structure(name)
    return structure.title if structure else name


def _median_spacing(facts: ResultFacts) -> list[float]:
    """Voxel size of the data (z, y, x)."""
    order, sizes = list(facts.plans["transpose_forward"]), facts.plans["original_median_spacing_after_transp"]
    return [float(sizes[order.index(axis)]) for axis in range(len(sizes))]


def _folds(facts: ResultFacts) -> list[str]:
    """Number of training and validation cases of each published fold."""
    splits = facts.data.splits
    lines = []
    for fold in facts.folds:
        if fold.fold == "all":
            lines.append("- fold all: trained on all cases; no case was left out for validation")
        elif int(fold.fold) < len(splits):
            split = splits[int(fold.fold)]
            lines.append(
                f"- fold {fold.fold}: {len(split['train'])} training cases, {len(split['val'])} validation cases (splits_final.json)"
            )
        else:
            lines.append(f"- fold {fold.fold}: not known: its training and validation cases")
    return lines


def _training(facts: ResultFacts) -> list[str]:
    steps = facts.steps_per_epoch
    lines = []
    for fold in facts.folds:
        epochs = "not known: how many epochs" if fold.epochs is None else counted(fold.epochs, "epoch")
        of_steps = "not known: how many steps an epoch" if steps is None else f"{counted(steps, 'step')} each"
        total = (
            f", {fold.epochs * steps * facts.batch_size:,} patches in all" if fold.epochs is not None and steps else ""
        )
        lines.append(
            f"- budget of fold {fold.fold}: {epochs}, {of_steps}, batches of {counted(facts.batch_size, 'patch', 'patches')}{total}"
        )
    if facts.kind == "pretraining":
        lines.append(f"- pretext: {facts.pretexts[0] if facts.pretexts else 'not known'}")
        lines += [f"- warning of the training: {warning}" for warning in facts.summary.get("warnings", [])]
    lines.append(f"- normalisation: {', '.join(facts.planned['normalization_schemes'])}")
    versions = facts.summary.get("versions")
    known = ", ".join(f"{name} {number}" for name, number in versions.items()) if versions else "not known"
    lines.append(f"- versions of the training: {known} (those of the publication are in config.json)")
    return lines


def _limits(facts: ResultFacts, validation: Validation | None) -> list[str]:
    lines = [
        "- Not known: results on other structures, stains, microscopes and species than those of the training data."
    ]
    if facts.unit == "voxel":
        lines.append(
            "- No physical voxel size was stated in training: images are taken voxel by voxel, and those of another resolution are segmented at the wrong scale without a warning."
        )
    else:
        lines.append(
            f"- Images are resampled by the voxel size in their header, which must be in {'µm' if facts.unit == 'um' else 'mm'}; with a wrong header the scale is wrong."
        )
    if not facts.data.groups:
        lines.append("- Not known: whether training and validation cases share animals.")
    if validation is not None and len(validation.cases) < 10:
        lines.append(f"- The validation has only {counted(len(validation.cases), 'case')}.")
    if facts.needs_this_package:
        lines.append("- Plain nnU-Net cannot build this network: nnunet_selma must be installed.")
    if facts.kind == "pretraining" and facts.adaptation is None:
        lines.append(
            "- The network does not name its encoder, so nnU-Net's `nnUNetv2_preprocess_like_nnssl` cannot take these weights; nnunet_selma can."
        )
    if facts.kind == "pretraining" and facts.adaptation is not None:
        unit = {"voxel": "voxels, with the size 1, 1, 1", "um": "µm", "mm": "mm"}[facts.unit]
        lines.append(
            "- nnU-Net's `nnUNetv2_preprocess_like_nnssl` takes the encoder only, normalises by z-score, sets a batch of 2, and with `-am like_pretrained` "
            f"resamples to a voxel size of {' × '.join(f'{edge:g}' for edge in facts.planned['spacing'])} whatever the unit: that of the dataset must be {unit}."
        )
    return lines


def _licence(licence: Licence, facts: ResultFacts) -> list[str]:
    lines = [f"[{licence.title}]({licence.url}) (SPDX: {licence.spdx}), see LICENSE."]
    return lines if facts.of_selma3d is False else [*lines, "", f"Training data: {selma3d_in_words(facts.of_selma3d)}"]


def _citation(facts: ResultFacts) -> list[str]:
    works = citations(facts)
    return [
        *(f"- {work.sentence} *({work.reason})*" for work in works),
        *(f"- Not known: {point}" for point in open_points(facts)),
        "",
        "```bibtex",
        *(work.bibtex for work in works),
        "```",
    ]
