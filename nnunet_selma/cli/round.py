"""`nnunet-selma round`."""

import argparse
from typing import Any

from nnunet_selma.cli.arguments import path
from nnunet_selma.cli.shell import folders


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "round",
        options=_options,
        help="say where an annotation loop stands, how good each version is, and what to type next",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=path,
        nargs="?",
        help="folder of cubes, from propose (default: that from which the dataset was made last)",
    )
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, metavar="N", help="dataset id of nnU-Net")
    parser.set_defaults(run=_round)


def _round(chosen: argparse.Namespace) -> int:
    from nnunet_selma.annotation.rounds import standing
    from nnunet_selma.annotation.rounds_text import as_text

    print(as_text(standing(chosen.dataset_id, folders(), chosen.source)))
    return 0
