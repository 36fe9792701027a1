"""`nnunet-selma view` and `overview`."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_selma.cli.arguments import path, voxel_size
from nnunet_selma.cli.shell import progress
from nnunet_selma.errors import SelmaError, counted

if TYPE_CHECKING:
    from nnunet_selma.volumes.segmented import Segmented


def add_to(parts: Any) -> None:
    """Add the commands."""
    view = parts.add_parser(
        "view", help="open an image and its segmentation in napari, without loading them, or a cube to annotate"
    )
    view.add_argument(
        "image",
        type=path,
        metavar="PATH",
        help="OME-Zarr of predict-volume, any volume, or a folder of propose, whose label is painted and saved",
    )
    view.add_argument(
        "--labels", type=path, metavar="PATH", help="segmentation in another file (default: the one in the OME-Zarr)"
    )
    _common(view)
    view.set_defaults(run=_view, starts_anew=True)

    overview = parts.add_parser(
        "overview", help="draw a segmentation: projections along three axes, density and sizes of objects, as PNG"
    )
    overview.add_argument(
        "labels", type=path, metavar="LABELS", help="OME-Zarr of predict-volume, or any volume of labels"
    )
    overview.add_argument(
        "-o", dest="output", type=path, default=Path("overview.png"), metavar="FILE", help="(default: %(default)s)"
    )
    overview.add_argument(
        "--raw", type=path, metavar="PATH", help="the image that was segmented (default: the one in the OME-Zarr)"
    )
    overview.add_argument("--channel", type=int, default=0, help="of the image, to show (default: %(default)s)")
    overview.add_argument(
        "--objects",
        type=path,
        metavar="FILE",
        help="table of nnunet-selma objects, .csv or .parquet (default: objects are measured, which takes longer)",
    )
    _common(overview)
    overview.set_defaults(run=_overview, starts_anew=True)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label", metavar="NAME", help="label image of the OME-Zarr (default: segmentation, or its only one)"
    )
    parser.add_argument("--scene", metavar="NAME", help="of an image file with several (default: the only one)")
    parser.add_argument("--time", type=int, metavar="N", help="of an image file with several (default: the only one)")
    parser.add_argument(
        "--spacing", type=voxel_size, metavar="Z,Y,X", help="voxel size, µm (default: what the file says)"
    )


def _check_choice(chosen: argparse.Namespace, segmented: "Segmented") -> None:
    """Raise `SelmaError` if a scene or time point is chosen of an image that is not there."""
    given = [option for option, value in (("--scene", chosen.scene), ("--time", chosen.time)) if value is not None]
    if given and not segmented.channels:
        raise SelmaError(f"{segmented.name}: has no image, which {given[0]} is for; leave the option out")


def _view(chosen: argparse.Namespace) -> int:
    from nnunet_selma.annotation.layout import CUBE
    from nnunet_selma.pictures.viewing import check_napari, layers, show
    from nnunet_selma.volumes.segmented import image_at

    if (chosen.image / CUBE).is_file():
        return _paint(chosen)
    image = image_at(chosen.image, label=chosen.label, labels=chosen.labels, scene=chosen.scene, time=chosen.time)
    _check_choice(chosen, image)
    check_napari()
    _check_display(chosen.image)
    show(image.name, layers(image, chosen.spacing))
    return 0


def _paint(chosen: argparse.Namespace) -> int:
    """Open a cube, whose label is saved when the user saves it."""
    from nnunet_selma.annotation.cube_label import CubeLabel
    from nnunet_selma.annotation.painting import PaintingWindow, cube_layers
    from nnunet_selma.pictures.viewing import check_napari, notify, show

    given = [o for o in ("labels", "label", "scene", "time", "spacing") if getattr(chosen, o) is not None]
    if given:
        raise SelmaError(f"{chosen.image}: is a cube to annotate, which needs no --{given[0]}; leave the option out")
    label = CubeLabel.open(chosen.image)
    check_napari()
    _check_display(chosen.image)
    for earlier in label.unsaved_files():
        print(f"{earlier}: holds what was painted and not saved in a window that was closed, killed, or is still open")
        print(_how_to_take(earlier, label.path))
    window = PaintingWindow(label, notify)
    try:
        show(chosen.image.resolve().name, cube_layers(label), window.prepare)
    finally:
        for sentence, file in window.close():
            print(sentence)
            if file:
                print(_how_to_take(file, label.path))
        if unsaved := label.write_unsaved():
            print(f"{unsaved}: holds what was painted and not saved; {label.path} stays as it is")
            print(_how_to_take(unsaved, label.path))
        else:
            print(f"{label.path}: {counted(label.saves, 'save')}")
    return 0


def _how_to_take(unsaved: Path, label: Path) -> str:
    """Sentences that say how to look at what was painted and not saved, and how to make it the label."""
    from nnunet_selma.annotation.layout import IMAGE

    look = shlex.join(["nnunet-selma", "view", str(label.with_name(IMAGE)), "--labels", str(unsaved)])
    return f"  to see it: {look}\n  to take it: give {label.name} another name, and {unsaved.name} the name {label.name}; to refuse it: remove it"


def _check_display(image: Path) -> None:
    """Raise `SelmaError` without a display: Qt would abort without a word that helps."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in _DISPLAYS):
        raise SelmaError(
            f"{image}: there is no display to open a window on; run the command on a computer with a screen, or connect with ssh -X. "
            "nnunet-selma overview draws a picture without one"
        )


_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def _overview(chosen: argparse.Namespace) -> int:
    from nnunet_selma.pictures.overview import overview
    from nnunet_selma.pictures.overview.sheet import overview_sheet
    from nnunet_selma.volumes.segmented import segmentation_at

    if chosen.output.suffix.lower() != ".png" or chosen.output.is_dir() or not chosen.output.parent.is_dir():
        raise SelmaError(f"{chosen.output}: give a PNG file in a folder that exists, as in -o overview.png")
    if not os.access(chosen.output.parent, os.W_OK):
        raise SelmaError(f"{chosen.output.parent}: cannot be written to; choose another folder")
    segmentation = segmentation_at(
        chosen.labels, label=chosen.label, raw=chosen.raw, scene=chosen.scene, time=chosen.time
    )
    _check_choice(chosen, segmentation)
    drawing = overview(
        segmentation, spacing_um_zyx=chosen.spacing, table=chosen.objects, channel=chosen.channel, progress=progress
    )
    overview_sheet(chosen.output, drawing)
    print(
        f"{counted(len(drawing.objects), 'object')}, {100 * drawing.foreground:.3g} % foreground; picture: {chosen.output}"
    )
    return 0
