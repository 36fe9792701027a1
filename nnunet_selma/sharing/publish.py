"""A repository ready for a hub, from a results folder.

A segmentation keeps nnU-Net's layout, `fold_N/checkpoint_final.pth`, so that plain nnU-Net predicts with the folder. A pretraining, which
segments nothing, has its checkpoint at the root beside `adaptation_plan.json`, where `nnUNetv2_preprocess_like_nnssl` of nnU-Net's development
version downloads it. Both have `config.json`: that command wants it, and hubs count downloads by it.
"""

import re
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY
from nnunet_selma.nnunet.checkpoints import SUFFIX, check_finite, export_weights, unpickled
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.json_files import read_json, write_json, write_text
from nnunet_selma.running.whole_files import whole_folder
from nnunet_selma.sharing.card import model_card
from nnunet_selma.sharing.card_commands import CardTexts
from nnunet_selma.sharing.cite import citations
from nnunet_selma.sharing.licences import licence_named, licence_text, selma3d_in_words
from nnunet_selma.sharing.light import light_checkpoint, public_plans, without_folders
from nnunet_selma.sharing.results import ResultFacts, facts_of
from nnunet_selma.sharing.training_data import SPLITS
from nnunet_selma.sharing.validation import Validation, read_validation

ADAPTATION = "adaptation_plan.json"
CONFIG = "config.json"
CARD = "README.md"
LICENCE = "LICENSE"
FINGERPRINT = "dataset_fingerprint.json"


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Options of a published folder."""

    license: str
    """Licence of the weights, as an SPDX identifier: cc-by-nc-4.0, cc-by-4.0, apache-2.0, …"""
    name: str | None = None
    """Name of the model; None: that of the output folder."""
    author: str | None = None
    """Who publishes it and holds the rights; None: said to be not known."""
    description: str | None = None
    """One or two sentences about the model, in the card; None: said to be not known."""
    repository: str | None = None
    """Repository on the hub, as ACCOUNT/NAME, for the commands in the card; None: said to be not known."""
    evaluation: Path | None = None
    """Folder or evaluation.json that `nnunet-selma evaluate -o` wrote, for the validation in the card; None: nnU-Net's validation/summary.json."""
    method: str | None = None
    """The method of the evaluation that is this model; None: the only one."""
    folds: tuple[str, ...] = ()
    """Folds to publish, or all; empty: those that are trained."""
    checkpoint: str = CHECKPOINT
    """File of the weights in the folder of a fold."""


def publish(results: Path, output: Path, settings: PublishSettings, folders: Folders | None = None) -> ResultFacts:
    """Write a repository ready for a hub; returns the facts it was written from. Nothing is left after an error.

    Args:
        results: results folder of nnU-Net.
        output: the folder to write; it may exist if it is empty.
        settings: licence, texts, and choice of folds.
        folders: nnU-Net's folders, for the folds and the manifest of the data; None: those around the results.

    Raises:
        SelmaError: the output folder is not empty, the results are no complete model, or a setting cannot be used.
    """
    licence = licence_named(settings.license)
    name = settings.name or output.resolve().name
    for option, text, pattern in (
        ("--name", name, r"[A-Za-z0-9][\w.-]*"),
        ("--repository", settings.repository, r"[\w.-]+/[\w.-]+"),
    ):
        if text is not None and not re.fullmatch(pattern, text, re.ASCII):
            raise SelmaError(
                f"{option} {text}: hubs take letters, digits, -, _ and . only{', as in ACCOUNT/NAME' if '/' in pattern else ''}; give another {option}"
            )
    if settings.method is not None and settings.evaluation is None:
        raise SelmaError(f"--method {settings.method}: is a method of an evaluation; give that with --evaluation")
    facts = facts_of(results, folds=settings.folds, checkpoint=settings.checkpoint, folders=folders)
    if facts.kind == "pretraining" and len(facts.folds) > 1:
        listed = " ".join(fold.fold for fold in facts.folds)
        raise SelmaError(f"{results}: holds several pretrainings, fold {listed}; choose one with -f")
    facts = _public_facts(facts)
    validation = read_validation(settings.evaluation, settings.method, facts) if settings.evaluation else None
    with whole_folder(output) as staging:
        _write(staging, facts, settings, name, validation)
        write_text(staging / LICENCE, licence_text(licence, name, settings.author, selma3d=facts.of_selma3d))
    return facts


def licence_warning(facts: ResultFacts, license_: str) -> str:
    """A warning if the licence allows more than that of SELMA3D's data may; empty for a non-commercial licence, or if they are not among the data."""
    licence = licence_named(license_)
    if not licence.commercial or facts.of_selma3d is False:
        return ""
    return f"{licence.spdx} allows commercial use. Training data: {selma3d_in_words(facts.of_selma3d)}"


def _public_facts(facts: ResultFacts) -> ResultFacts:
    """The facts, in whose texts paths lose the folders of this machine."""
    folds = (
        replace(fold, ancestor=without_folders(fold.ancestor), entries=without_folders(fold.entries))
        for fold in facts.folds
    )
    return replace(
        facts, folds=tuple(folds), dataset=without_folders(facts.dataset), summary=without_folders(facts.summary)
    )


def _write(
    target: Path, facts: ResultFacts, settings: PublishSettings, name: str, validation: Validation | None
) -> None:
    """Write all files but LICENSE."""
    write_json(target / "plans.json", public_plans(read_json(facts.folder / "plans.json")))
    write_json(target / "dataset.json", facts.dataset)
    if (facts.folder / FINGERPRINT).is_file():
        shutil.copyfile(facts.folder / FINGERPRINT, target / FINGERPRINT)
    if facts.data.splits:
        write_json(target / SPLITS, facts.data.splits)
    parameters = 0
    for fold in facts.folds:
        place = target if facts.kind == "pretraining" else target / f"fold_{fold.fold}"
        place.mkdir(exist_ok=True)
        light = light_checkpoint(unpickled(fold.checkpoint))
        check_finite(light["network_weights"], str(fold.checkpoint))
        if facts.kind == "pretraining":
            papers = [citation.sentence for citation in citations(facts)]
            light["citations"] = [{"type": "Pretraining", "name": name, "apa_citations": papers}]
        torch.save(light, place / CHECKPOINT)
        _, parameters = export_weights(place / CHECKPOINT, (place / CHECKPOINT).with_suffix(SUFFIX))
    if facts.adaptation is not None:
        write_json(target / ADAPTATION, {**facts.adaptation, "trainer_name": facts.trainer or facts.stored_trainer})
    if facts.summary:
        write_json(target / SUMMARY, facts.summary)
    licence = licence_named(settings.license)
    write_json(target / CONFIG, _config(facts, name, licence.on_hub))
    texts = CardTexts(
        name=name,
        author=settings.author,
        description=settings.description,
        repository=settings.repository,
        checkpoint=settings.checkpoint,
    )
    write_text(target / CARD, model_card(facts, texts, licence, parameters, validation))


def _config(facts: ResultFacts, name: str, licence: str) -> dict[str, Any]:
    """The content of config.json: the model in short, and the versions that published it."""
    return {
        "model_type": "nnunetv2",
        "name": name,
        "kind": facts.kind,
        "license": licence,
        "dataset": facts.dataset_name,
        "plans": facts.plans_name,
        "configuration": facts.configuration,
        "trainer": facts.trainer or facts.stored_trainer,
        "folds": [fold.fold for fold in facts.folds],
        "network_class_name": facts.network,
        "channels": list(facts.channels),
        "classes": dict(facts.classes) if facts.kind == "segmentation" else {},
        "patch_size": list(facts.patch_size),
        "spacing_zyx": list(facts.spacing_zyx),
        "spacing_unit": facts.unit,
        "batch_size": facts.batch_size,
        "epochs": {fold.fold: fold.epochs for fold in facts.folds},
        "steps_per_epoch": facts.steps_per_epoch,
        "published_with": {
            "nnunet_selma": __version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
    }
