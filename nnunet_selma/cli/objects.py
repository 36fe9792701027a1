"""`nnunet-selma objects`."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import progress

_NO_RAW = Path("none")


def _objects(chosen: argparse.Namespace) -> int:
    from nnunet_selma.objects import ObjectSettings, measure_objects
    from nnunet_selma.objects.summary import sentences

    without_raw = chosen.raw == _NO_RAW
    settings = settings_from(ObjectSettings, chosen, raw=None if without_raw else chosen.raw, without_raw=without_raw)
    for sentence in sentences(measure_objects(settings, progress)):
        print(sentence)
    more = [("regions", settings.atlas and settings.region_table), ("instances", settings.instances)]
    written = [("table", settings.output), *more, ("summary", settings.summary)]
    print(", ".join(f"{what}: {where}" for what, where in written if where))
    return 0


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "objects",
        options=_options,
        help="table of the objects of a segmentation of any size: volume, place, intensity, region",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.objects import ObjectSettings

    parser.add_argument(
        "labels",
        type=path,
        metavar="LABELS",
        help="OME-Zarr with labels, or any volume of labels; objects are touching voxels of equal label",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        required=True,
        metavar="TABLE",
        help="table to write, .csv or .parquet; beside it a summary, .json",
    )
    parser.add_argument(
        "--raw",
        type=path,
        metavar="VOLUME|none",
        help="image whose intensities are measured (default: that of the OME-Zarr, if there is one; none: no intensities)",
    )
    add_options(
        parser, ObjectSettings, label="", scene="", channel="", time="", spacing_um_zyx="--spacing", connectivity=""
    )
    add_options(
        parser,
        ObjectSettings,
        min_voxels="",
        max_voxels="",
        split_touching="",
        neck=" SHARE",
        probabilities=" OME_ZARR",
        topology="",
        trees="",
        instances=" OUT.ome.zarr",
        overwrite="",
    )
    regions = parser.add_argument_group("regions of an atlas that is registered already")
    add_options(regions, ObjectSettings, atlas=" FILE", transform=" FILE", atlas_spacing_um_zyx="--atlas-spacing")
    add_options(regions, ObjectSettings, orientation=" LETTERS", atlas_orientation=" LETTERS")
    add_options(regions, ObjectSettings, region_names=" CSV", regions=" TABLE")
    parser.set_defaults(run=_objects, starts_anew=True)
