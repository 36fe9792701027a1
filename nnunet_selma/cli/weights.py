"""`nnunet-selma export-weights`."""

import argparse
from typing import Any

from nnunet_selma.cli.arguments import path


def _export_weights(chosen: argparse.Namespace) -> int:
    from nnunet_selma.nnunet.checkpoints import export_weights

    tensors, parameters = export_weights(chosen.checkpoint, chosen.output, overwrite=chosen.overwrite)
    print(f"{chosen.output}: {tensors} tensors, {parameters:,} parameters")
    print(f"use it with: nnunet-selma settings … finetuning.pretrained={chosen.output}")
    return 0


def add_to(parts: Any) -> None:
    """Add the command."""
    export = parts.add_parser(
        "export-weights", help="write the pretrained weights of a checkpoint as safetensors, which cannot carry code"
    )
    export.add_argument("checkpoint", type=path, help="of nnU-Net, nnssl, MONAI or plain PyTorch")
    export.add_argument("-o", dest="output", type=path, required=True, metavar="FILE.safetensors", help="file to write")
    export.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    export.set_defaults(run=_export_weights)
