"""What a pretraining says of itself, and how fine-tuning finds it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json

SUMMARY = "ssl_summary.json"
CHECKPOINT = "checkpoint_final.pth"


def network_identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What two plans must share so that every weight of one fits into the other: class and arguments of the network."""
    architecture = configuration["architecture"]
    return {"network_class_name": architecture["network_class_name"], "arch_kwargs": architecture["arch_kwargs"]}


def find_pretrained(wish: str, results: Path, network: Mapping[str, Any]) -> Path | None:
    """The checkpoint to start from, or None if random weights were asked for.

    Args:
        wish: a path, "newest", or "none".
        results: the `nnUNet_results` folder, searched for `ssl_summary.json`.
        network: the identity of the network that is to be filled.

    Raises:
        SelmaError: the path does not exist, or no finished pretraining has this network.
    """
    if wish == "none":
        return None
    if wish != "newest":
        if not Path(wish).is_file():
            raise SelmaError(f"{wish}: there is no such checkpoint (finetuning.pretrained in the plans)")
        return Path(wish)
    summaries = sorted(
        results.glob(f"Dataset*/*/fold_*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for path in summaries:
        if read_json(path).get("network") == network and (path.parent / CHECKPOINT).is_file():
            return path.parent / CHECKPOINT
    others = (
        f"{len(summaries)} pretraining(s) there have another network" if summaries else f"there is none in {results}"
    )
    raise SelmaError(
        f"no finished pretraining of this network was found, {others}; pretrain with -tr SelmaSSLTrainer and the plans that "
        "nnunet-selma plan-pretraining prints, or start from random weights with: nnunet-selma settings … finetuning.pretrained=none"
    )
