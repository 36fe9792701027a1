"""Commands of a model card: how others download, use and fine-tune a published folder."""

import re
from dataclasses import dataclass

from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.sharing.markdown import block
from nnunet_selma.sharing.results import ResultFacts


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


def commands(facts: ResultFacts, texts: CardTexts) -> list[str]:
    """Lines of the section "How to use it"."""
    repository = texts.repository or '"$REPOSITORY"'
    unknown = (
        []
        if texts.repository
        else ["Not known: the repository on a hub; put it, as account/name, into the variable REPOSITORY.", ""]
    )
    download = f"hf download {repository} --local-dir {texts.name}"
    upload = ["", "Whoever publishes the folder uploads it with", "", *block(f"hf upload {repository} {texts.name}")]
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
        *block(*needed, download, f"nnUNetv2_predict_from_modelfolder -i IN -o OUT -m {texts.name} -f {folds}"),
        "",
        "A whole brain in constant memory, with nnunet_selma:",
        "",
        *block(f"nnunet-selma predict-volume VOLUME -o OUT.ome.zarr -m {texts.name} -f {folds}{size}"),
    ]
    number = re.match(r"Dataset(\d+)_", facts.dataset_name)
    if number and facts.trainer:
        model = f"{facts.trainer}__{facts.plans_name}__{facts.configuration}"
        lines += [
            "",
            "With `nnUNetv2_predict`, the folder lies below nnUNet_results:",
            "",
            *block(
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
        *block(
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
            *block(
                *variable,
                f"nnUNetv2_preprocess_like_nnssl -d ID -n {texts.name} -pc {source} -am like_pretrained",
                "nnUNetv2_train_pretrained ID 3d_fullres 0 -p PLANS -tr PretrainedTrainer",
            ),
        ]
    return lines
