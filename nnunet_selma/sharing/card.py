"""The model card: README.md of a published folder, filled from the facts of the training, and the check that it is complete.

What no file and no option says is said to be not known.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import yaml  # type: ignore[import-untyped]

from nnunet_selma.errors import counted
from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.sharing.cite import citations, open_points
from nnunet_selma.sharing.licences import SELMA3D_QUESTION, Licence
from nnunet_selma.sharing.results import ResultFacts, folds_in_words, in_words, mean_dice
from nnunet_selma.sharing.validation import Validation, held_out
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
HEADER_KEYS = ("license", "library_name", "pipeline_tag", "tags")
"""Entries of a complete front matter, which hubs read."""
_PLACEHOLDER = re.compile(
    r"\b(?:TODO|TBD|FIXME|XXX)\b|More Information Needed|lorem ipsum|<(?:your|insert|name)\b[^>]*>", re.I
)


@dataclass(frozen=True, kw_only=True)
class CardTexts:
    """Texts of a card that the publisher chooses."""

    name: str
    author: str | None
    description: str | None
    repository: str | None
    """Repository on the hub, ACCOUNT/NAME."""
    checkpoint: str
    """File of the weights in the results folder."""


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
        "How to use it": _commands(facts, texts),
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
    selma3d = ["SELMA3D"] if facts.names_of_selma3d else []
    tags = ["nnU-Net", "biology", "microscopy", "light-sheet-microscopy", "3d", purpose, *selma3d, *facts.structures]
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
    return ["| | |", "|---|---|", *(f"| {name} | {_in_cell(text)} |" for name, text in rows.items())]


def _in_cell(text: str) -> str:
    """Text that stays in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


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
    images = f"three-dimensional images with {counted(len(facts.channels), 'channel')} ({', '.join(facts.channels)}) at {scale}"
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


def validation_lines(facts: ResultFacts, validation: Validation | None) -> list[str]:
    """Lines on how the model was validated: by the rules of SELMA3D, or without such scores by nnU-Net."""
    return _scores(validation) if validation else _nnunets_scores(facts)


def _scores(validation: Validation) -> list[str]:
    rows = [row.cells() for row in validation.rows]
    return [
        f"By the rules of SELMA3D {validation.year} (`nnunet-selma evaluate`), over {counted(len(validation.cases), 'case')}. {held_out(validation)}",
        "",
        *_table(["structure", "metric", "n", "mean", "95 % interval"], rows),
        "",
        "Intervals are percentiles of 9999 bootstrap resamples of the cases. Cases of one brain are more alike than cases of two, so that they are too narrow where cases share brains.",
    ]


def _nnunets_scores(facts: ResultFacts) -> list[str]:
    if facts.kind == "pretraining":
        return [
            "A pretraining segments nothing and has no validation of a segmentation. Not known: what fine-tuning from it gains."
        ]
    rows = [
        [
            name,
            "Dice ↑",
            f"{count}{f' ({lacking} without a value)' if lacking else ''}",
            "–" if isnan(mean) else f"{mean:.3f}",
        ]
        for name, (mean, count, lacking) in mean_dice(facts).items()
    ]
    if not rows:
        return ["Not known: no evaluation was given, and the training left no validation/summary.json."]
    validated = ", ".join(fold.fold for fold in facts.folds if fold.dice)
    return [
        f"By nnU-Net's own validation of fold {validated}, over the cases that each fold left out (with fold all: over training cases).",
        "",
        *_table(["class", "metric", "n", "mean"], rows),
        "",
        "Not known: intervals, and the metrics of SELMA3D; no evaluation by `nnunet-selma evaluate` was given.",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_in_cell, cells))} |" for cells in (head, ["---"] * len(head), *rows)]


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


def _commands(facts: ResultFacts, texts: CardTexts) -> list[str]:
    repository = texts.repository or '"$REPOSITORY"'
    unknown = (
        []
        if texts.repository
        else ["Not known: the repository on a hub; put it, as account/name, into the variable REPOSITORY.", ""]
    )
    download = f"hf download {repository} --local-dir {texts.name}"
    upload = ["", "Whoever publishes the folder uploads it with", "", *_block(f"hf upload {repository} {texts.name}")]
    if facts.kind == "pretraining":
        return [*unknown, *_pretraining_commands(facts, texts, download), *upload]
    folds = " ".join(fold.fold for fold in facts.folds)
    size = "" if facts.unit == "voxel" else " --spacing Z,Y,X"
    channels = (
        ""
        if len(facts.channels) == 1
        else f" (each case has {len(facts.channels)} files, `_0000` to `_{len(facts.channels) - 1:04d}`)"
    )
    needed = ["# with nnunet_selma installed"] if facts.needs_this_package else ["pip install nnunetv2 huggingface_hub"]
    lines = [
        *unknown,
        f"Cubes, with nnU-Net's command; images end in `{facts.dataset.get('file_ending', '.nii.gz')}`{channels}:",
        "",
        *_block(*needed, download, f"nnUNetv2_predict_from_modelfolder -i IN -o OUT -m {texts.name} -f {folds}"),
        "",
        "A whole brain in constant memory, with nnunet_selma:",
        "",
        *_block(f"nnunet-selma predict-volume VOLUME -o OUT.ome.zarr -m {texts.name} -f {folds}{size}"),
    ]
    number = re.match(r"Dataset(\d+)_", facts.dataset_name)
    if number and facts.trainer:
        model = f"{facts.trainer}__{facts.plans_name}__{facts.configuration}"
        lines += [
            "",
            "With `nnUNetv2_predict`, the folder lies below nnUNet_results:",
            "",
            *_block(
                f'mkdir -p "$nnUNet_results/{facts.dataset_name}"',
                f'cp -r {texts.name} "$nnUNet_results/{facts.dataset_name}/{model}"',
                f"nnUNetv2_predict -d {int(number[1])} -i IN -o OUT -tr {facts.trainer} -p {facts.plans_name} -c {facts.configuration} -f {folds}",
            ),
        ]
    return [*lines, *upload]


def _pretraining_commands(facts: ResultFacts, texts: CardTexts, download: str) -> list[str]:
    lines = [
        "Fine-tuning with nnunet_selma, from plans of the same network or of another:",
        "",
        *_block(
            download,
            f"nnunet-selma settings -d ID -p PLANS finetuning.pretrained=$PWD/{texts.name}/{CHECKPOINT}",
            "nnUNetv2_train ID 3d_fullres 0 -tr SelmaFinetuneTrainer -p PLANS",
        ),
    ]
    if facts.adaptation is not None:
        source = f"https://huggingface.co/{texts.repository}" if texts.repository else f"{texts.name}/{CHECKPOINT}"
        variable = ["export nnssl_pretrained_models=FOLDER"] if texts.repository else []
        lines += [
            "",
            "Fine-tuning with nnU-Net's development version (3D networks only), which prints the name of the plans:",
            "",
            *_block(
                *variable,
                f"nnUNetv2_preprocess_like_nnssl -d ID -n {texts.name} -pc {source} -am like_pretrained",
                "nnUNetv2_train_pretrained ID 3d_fullres 0 -p PLANS -tr PretrainedTrainer",
            ),
        ]
    return lines


def _block(*lines: str) -> list[str]:
    return ["```bash", *lines, "```"]


def _licence(licence: Licence, facts: ResultFacts) -> list[str]:
    lines = [f"[{licence.title}]({licence.url}) (SPDX: {licence.spdx}), see LICENSE."]
    if facts.names_of_selma3d is not False:
        beginning = (
            ""
            if facts.names_of_selma3d
            else "Not known: what the training data show. If data of SELMA3D are among them: "
        )
        lines += ["", beginning + SELMA3D_QUESTION]
    return lines


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


def card_problems(card: str, config: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that a card lacks or says wrongly; without the name of the file.

    Args:
        card: the text of README.md.
        config: the content of config.json, whose name, folds and licence the card must have; empty if it cannot be read.
    """
    header, body = _parted(card)
    if header is None:
        return [
            "has no front matter that can be read, between two lines ---; hubs need license, library_name, pipeline_tag and tags there"
        ]
    problems = [f"has no {key} in its front matter" for key in HEADER_KEYS if not header.get(key)]
    licence = config.get("license")
    if header.get("license") and licence and str(header["license"]).lower() != licence:
        problems.append(f"says license {header['license']} in its front matter, and config.json says {licence}")
    sections = sections_of(body)
    for title in SECTIONS:
        if title not in sections:
            problems.append(f"has no section {title!r}")
        elif not sections[title].strip():
            problems.append(f"says nothing in its section {title!r}")
    for match in dict.fromkeys(match.group() for match in _PLACEHOLDER.finditer(_without_bibtex(body))):
        problems.append(f"still has a placeholder, {match!r}")
    return problems + (_command_problems(sections.get("How to use it", ""), config) if config else [])


def _without_bibtex(body: str) -> str:
    return re.sub(r"^```bibtex\n.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)


def sections_of(body: str) -> dict[str, str]:
    """Heading of the second level to the text below it."""
    parts = re.split(r"^## +(.+?) *$", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _parted(card: str) -> tuple[Mapping[str, Any] | None, str]:
    """The front matter, None where it is empty or no YAML, and the text behind it."""
    match = re.match(r"---\n(.*?)\n?---\n(.*)", card, re.DOTALL)
    if match is None:
        return None, card
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return None, match[2]
    return (header if isinstance(header, Mapping) else None), match[2]


def _command_problems(text: str, config: Mapping[str, Any]) -> list[str]:
    """A sentence for each command that names another folder, or other folds, than the model has."""
    name, folds = config.get("name"), [str(fold) for fold in config.get("folds", [])]
    problems = []
    for option in ("-m", "--local-dir"):
        for folder in dict.fromkeys(re.findall(rf"(?<!\S){option} (\S+)", text)):
            if folder != name:
                problems.append(f"has a command with {option} {folder}, and the model is called {name} in config.json")
    if config.get("kind") == "segmentation":
        for chosen in dict.fromkeys(re.findall(r"(?<!\S)-f ((?:all|\d+)(?: \d+)*)", text)):
            if chosen.split() != folds:
                problems.append(f"has a command with -f {chosen}, and the folds are {' '.join(folds)}")
        if "-m " not in text:
            problems.append("has no command that predicts with the folder, -m")
    if "--local-dir " not in text:
        problems.append("has no command that downloads the folder, --local-dir")
    return problems
