"""`nnunet-selma objects`."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path, voxel_size
from nnunet_selma.cli.shell import progress

_NO_RAW = Path("none")


def _objects(chosen: argparse.Namespace) -> int:
    from nnunet_selma.objects import ObjectSettings, measure_objects
    from nnunet_selma.objects.summary import sentences

    without_raw = chosen.raw == _NO_RAW
    settings = ObjectSettings(
        labels=chosen.labels,
        output=chosen.output,
        label=chosen.label,
        raw=None if without_raw else chosen.raw,
        without_raw=without_raw,
        channel=chosen.channel,
        spacing_um_zyx=chosen.spacing,
        connectivity=chosen.connectivity,
        min_voxels=chosen.min_voxels,
        max_voxels=chosen.max_voxels,
        trees=chosen.trees,
        instances=chosen.instances,
        overwrite=chosen.overwrite,
        atlas=chosen.atlas,
        transform=chosen.transform,
        atlas_spacing_um_zyx=chosen.atlas_spacing,
        region_names=chosen.region_names,
        regions=chosen.regions,
    )
    for sentence in sentences(measure_objects(settings, progress)):
        print(sentence)
    more = [("regions", settings.atlas and settings.region_table), ("instances", settings.instances)]
    written = [("table", settings.output), *more, ("summary", settings.summary)]
    print(", ".join(f"{what}: {where}" for what, where in written if where))
    return 0


def add_to(parts: Any) -> None:
    """Add the command."""
    parser = parts.add_parser(
        "objects", help="table of the objects of a segmentation of any size: volume, place, intensity, region"
    )
    parser.add_argument(
        "labels",
        type=path,
        metavar="LABELS",
        help="OME-Zarr with labels, folder of TIFF slices, multi-page TIFF, NIfTI, NRRD or MHA; objects are touching voxels of equal label",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        required=True,
        metavar="TABLE",
        help="table to write, .csv or .parquet; beside it a summary, .json",
    )
    parser.add_argument("--label", metavar="NAME", help="which label image of an OME-Zarr that holds several")
    parser.add_argument(
        "--raw",
        type=path,
        metavar="VOLUME|none",
        help="image whose intensities are measured (default: that of the OME-Zarr, if there is one; none: no intensities)",
    )
    parser.add_argument("--channel", type=int, metavar="N", help="of an image with several channels, from 0")
    parser.add_argument("--spacing", type=voxel_size, metavar="Z,Y,X", help="voxel size in µm, instead of the file's")
    parser.add_argument(
        "--connectivity",
        type=int,
        choices=(6, 26),
        default=26,
        help="neighbours of a voxel: those it shares a face with, or a corner too (default: %(default)s)",
    )
    parser.add_argument(
        "--min-voxels", type=int, default=1, metavar="N", help="of the smallest object (default: %(default)s)"
    )
    parser.add_argument("--max-voxels", type=int, metavar="N", help="of the largest object")
    parser.add_argument(
        "--trees",
        action="store_true",
        help="length and branch points of the skeleton; of networks that span a brain it wants labels in chunks (OME-Zarr), slices are read many times",
    )
    parser.add_argument(
        "--instances",
        type=path,
        metavar="OUT.ome.zarr",
        help="write the number of its object at every voxel; IMAGE.ome.zarr/labels/NAME adds it to an image",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace instances that are there")
    regions = parser.add_argument_group("regions of an atlas that is registered already")
    regions.add_argument(
        "--atlas",
        type=path,
        metavar="FILE",
        help="region numbers; without a transform over the same field of view as the labels, at any resolution",
    )
    regions.add_argument(
        "--transform",
        type=path,
        metavar="FILE",
        help="from the sample (fixed image) to the atlas (moving image), as ITK and ANTs write it; NIfTI, NRRD and MHA lie where "
        "their headers say, other labels begin at 0",
    )
    regions.add_argument(
        "--atlas-spacing", type=voxel_size, metavar="Z,Y,X", help="voxel size of the atlas in µm, instead of the file's"
    )
    regions.add_argument("--region-names", type=path, metavar="CSV", help="with the columns id and name")
    regions.add_argument(
        "--regions", type=path, metavar="TABLE", help="table of regions to write (default: TABLE_regions.csv)"
    )
    parser.set_defaults(run=_objects, starts_anew=True)
