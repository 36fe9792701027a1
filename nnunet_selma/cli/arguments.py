"""Arguments that several commands share, and their parsing."""

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.spacing import Spacing
from nnunet_selma.running.cores import usable_cores
from nnunet_selma.structures import SpacingUm, named


def path(text: str) -> Path:
    """A path; `~` is the home folder, and an empty text is refused, because it would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; give the name of a file or folder, or . for this folder")
    return Path(text).expanduser()


def spacing(text: str) -> Spacing:
    """Header, physical, voxel, or a voxel size in µm."""
    for word in ("header", "physical", "voxel"):
        if text == word:
            return word
    return voxel_size(text, "header, physical, voxel, or ")


def voxel_size(text: str, other: str = "") -> SpacingUm:
    """Three numbers Z,Y,X in µm."""
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give {other}three numbers Z,Y,X in µm") from None
    if not all(0 < edge < inf for edge in (z, y, x)):
        raise argparse.ArgumentTypeError(f"{text!r}: a voxel size is above 0")
    return (z, y, x)


def prefixes(names: Sequence[str]) -> tuple[str, ...]:
    """Names of structures or of their folders as prefixes of cases; raises `SelmaError` for a name that is not known."""
    return tuple(named(name).prefix for name in names)


def source_plans_arguments(parser: Any) -> None:
    """The plans of the annotated dataset that others are made from."""
    parser.add_argument(
        "-p", dest="plans", default="nnUNetPlans", help="plans of the annotated dataset (default: %(default)s)"
    )
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="(default: %(default)s)")


MOST_WORKERS = 4
"""Default number of processes at most; each takes memory, and a laptop has little to spare."""


def device_argument(parser: Any) -> None:
    """Where networks compute."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="(default: cuda if there is a GPU, else mps, else cpu)"
    )


def workers_argument(parser: Any, what: str) -> None:
    """How many processes."""
    parser.add_argument(
        "--workers",
        type=int,
        default=min(MOST_WORKERS, usable_cores()),
        help=f"processes; {what} (default: %(default)s)",
    )


def scheduler_argument(parser: Any) -> None:
    """A Dask cluster."""
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask cluster does it: tcp://HOST:PORT, or local:N for N processes here",
    )
