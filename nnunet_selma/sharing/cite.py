"""Citations that a paper owes for a trained model: the choice among `works`, by what the results folder records.

Where the folder does not say whose data or weights were used, the reason of a citation says "if", and `open_points` says what is missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nnunet_selma.sharing import works
from nnunet_selma.sharing.results import ResultFacts
from nnunet_selma.sharing.training_data import DELIVR_LAYOUT, SELMA3D_LAYOUTS
from nnunet_selma.sharing.works import Work
from nnunet_selma.structures import find_structure


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A work to cite, and why."""

    key: str
    """Key of the BibTeX entry."""
    reason: str
    """Part of the model that rests on the work."""
    sentence: str
    """The reference as text."""
    doi: str
    """Empty for a program without one."""
    bibtex: str


def citations(facts: ResultFacts) -> list[Citation]:
    """The works to cite for a model, each once, with all reasons for it."""
    reasons: dict[Work, list[str]] = {}
    for work, reason in _reasons(facts):
        if reason not in reasons.setdefault(work, []):
            reasons[work].append(reason)
    return [
        Citation(key=work.key, reason="; ".join(because), sentence=work.sentence, doi=work.doi, bibtex=work.bibtex)
        for work, because in reasons.items()
    ]


def open_points(facts: ResultFacts) -> list[str]:
    """Sentences about works that have to be cited too, and that the results folder does not name."""
    points = []
    if facts.kind == "segmentation":
        origins = {
            ancestor["weights"] if ancestor else "unknown" for ancestor in (fold.ancestor for fold in facts.folds)
        }
        if "given" in origins:
            points.append("The training started from a file that nnUNetv2_train was given: cite those who made it.")
        if "unknown" in origins:
            points.append("The weights that the training started from are not recorded: cite those who made them.")
    points += [
        f"The weights in {ancestor.get('path')} come from a training that records neither a pretext nor an origin: cite those who made them."
        for ancestor in facts.ancestors
        if ancestor["weights"] == "pretrained" and not ancestor.get("pretext") and not ancestor.get("ancestor")
    ]
    points += [
        f"{name} is no pretext of this package: cite its source."
        for name in facts.pretexts
        if name not in works.PRETEXTS
    ]
    others = [layout for layout in facts.data.layouts if layout not in (*SELMA3D_LAYOUTS, DELIVR_LAYOUT)]
    if others:
        points.append(
            f"Data were converted from a download laid out neither as SELMA3D's nor as DELiVR's ({', '.join(others)}): cite their source."
        )
    elif not facts.structures or any(find_structure(prefix) is None for prefix in facts.structures):
        points.append("The training data are not those of a published data set that is known here: cite their source.")
    return points


def _reasons(facts: ResultFacts) -> Iterator[tuple[Work, str]]:
    """The works, and a reason for each."""
    yield works.NNUNET, "planning, training and prediction are nnU-Net's"
    name = facts.network.rsplit(".", 1)[-1]
    if "ResidualEncoder" in name or "ResEnc" in facts.plans_name:
        yield works.RESIDUAL_ENCODER, "the network is one of nnU-Net's residual encoder presets"
    if facts.network.startswith("nnunet_selma."):
        for work in works.NETWORKS.get(name, ()):
            yield work, "the network is built from MONAI's blocks" if work is works.MONAI else f"the network is {name}"
    yield from _data(facts)
    for pretext in facts.pretexts:
        for work in works.PRETEXTS.get(pretext, ()):
            yield work, f"the pretext of the pretraining, {pretext}, follows it"
    yield works.THIS_PACKAGE, "the pretraining, the fine-tuning or the packaging is this program's"


def _data(facts: ResultFacts) -> Iterator[tuple[Work, str]]:
    """Works about the training data."""
    selma3d = _selma3d(facts)
    if selma3d:
        yield works.SELMA3D, selma3d
        for prefix, work in works.SOURCE_OF_STRUCTURE.items():
            structure = find_structure(prefix)
            assert structure is not None
            yield work, f"{selma3d}: source of SELMA3D's images of the {structure.title}, which its terms ask to cite"
    if DELIVR_LAYOUT in facts.data.layouts:
        yield works.DELIVR, "the annotated data were converted from a download laid out as DELiVR's"
    elif facts.kind == "segmentation" and not facts.data.layouts and "microglia" in facts.structures:
        yield works.DELIVR, "if the annotated data are DELiVR's, which the results folder does not record"


def _selma3d(facts: ResultFacts) -> str:
    """The reason to cite SELMA3D and the papers on its data; empty without one."""
    if facts.data_of_selma3d:
        return "the annotated data were converted from a download laid out as SELMA3D's"
    named = "SELMA3D" in facts.dataset_name or any(prefix in works.SOURCE_OF_STRUCTURE for prefix in facts.structures)
    if facts.kind == "segmentation" and facts.data_of_selma3d is None and named:
        return "if the annotated data are SELMA3D's, which the results folder does not record"
    if facts.kind == "pretraining" or facts.pretexts:
        return "if the unlabelled images are SELMA3D's, which the results folder does not record"
    return ""
