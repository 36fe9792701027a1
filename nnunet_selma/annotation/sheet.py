"""Contact sheet of the cubes of a folder: middle sections of each, its number, its brain and the reason for its choice; and their places."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from nnunet_selma.annotation.brains import Brain
from nnunet_selma.annotation.layout import IMAGE, LABEL, NOT_ANNOTATED
from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures.figures import new_figure, save, show_raw
from nnunet_selma.pictures.overview.sheet import CLASS_COLOURS
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

_COLUMNS = 4
_PANEL = (3.3, 4.5)
"""Width and height of a panel, inches."""
_TEXT_WIDTH = 50
"""Letters of a line below a panel."""
_LINES = 5
_GAP = 2
"""Pixels between sections."""
_MOST_OUTLINED = 20
"""Number of values above which a label is not outlined, because they are numbers of objects, or an image."""
_MAP_PIXELS = 600
"""Longer edge of a brain's section in a map, pixels."""


def draw_sheet(path: Path, cubes: Sequence[dict[str, Any]], folders: Sequence[Path], brains: Sequence[Brain]) -> None:
    """Write the sheet as PNG.

    Args:
        path: the file.
        cubes: content of the `cube.json` of each cube that is drawn.
        folders: folder of each cube.
        brains: brains that get a map with the places of their cubes.
    """
    panels = len(cubes) + len(brains)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    figure: Figure = new_figure(_PANEL[0] * columns, _PANEL[1] * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, cube, folder in zip(axes, cubes, folders, strict=False):
        _draw_cube(axis, folder, cube)
    for axis, brain in zip(axes[len(cubes) :], brains, strict=False):
        _draw_map(axis, brain, [cube for cube in cubes if cube["brain"] == brain.name])
    for axis in axes[panels:]:
        axis.set_axis_off()
    save(figure, path)


def _draw_cube(axis: Axes, folder: Path, cube: dict[str, Any]) -> None:
    """The three middle sections of a cube; outlines are what a model suggests or a person has painted."""
    problem = _draw_image(axis, folder / IMAGE, cube) or _draw_label(axis, folder / LABEL, cube)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"cube {cube['number']}, {shorten(cube['brain'], 30, placeholder='…')}", fontsize=10)
    z, y, x = cube["start_zyx"]
    lines = [
        f"round {cube['round']}; z {z}, y {y}, x {x}; {' × '.join(map(str, cube['shape_zyx']))} voxels",
        *([problem] if problem else []),
        *wrap(cube["reason"]["words"], _TEXT_WIDTH),
    ]
    axis.set_xlabel("\n".join([*lines[:_LINES], "…"] if len(lines) > _LINES + 1 else lines), fontsize=7, loc="left")


def _draw_image(axis: Axes, path: Path, cube: dict[str, Any]) -> str | None:
    """Show the first channel; returns a few words if it cannot be shown, because a person may have moved the file."""
    if not path.exists():
        return f"{path.name} is missing"
    try:
        image = open_volume(path, channel=0 if len(cube["images"]) > 1 else None).read()
    except SelmaError:
        return f"{path.name} cannot be read"
    low, high = np.percentile(image, (0.5, 99.7))
    picture = sections(image, tuple(cube["spacing_um_zyx"]))
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    return None


def _draw_label(axis: Axes, path: Path, cube: dict[str, Any]) -> str | None:
    """Outline the classes of a label; returns a few words if it cannot be drawn, because a person may have saved anything there."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        labels = open_volume(path).read()
    except SelmaError:
        return f"{path.name} cannot be read"
    if labels.shape != tuple(cube["shape_zyx"]):
        return f"{path.name} has another size"
    picture = sections(labels, tuple(cube["spacing_um_zyx"]))
    values = np.unique(picture[(picture > 0) & (picture != NOT_ANNOTATED) & np.isfinite(picture)])
    if len(values) > _MOST_OUTLINED:
        return f"{path.name} has {len(values)} values here, too many for outlines"
    for value in values:
        colour = CLASS_COLOURS[(int(value) - 1) % len(CLASS_COLOURS)]
        axis.contour(picture == value, levels=[0.5], colors=[colour], linewidths=0.8)
    return None


def sections(voxels: Array, spacing_zyx: SpacingUm) -> Array:
    """The middle sections of a cube as one picture of equal pixels: across z, right of it across x, below it across y.

    Gaps and the corner are NaN.
    """
    pixel = min(spacing_zyx)
    z, y, x = (
        np.minimum(((np.arange(max(1, round(n * s / pixel))) + 0.5) * pixel / s).astype(int), n - 1)
        for n, s in zip(voxels.shape, spacing_zyx, strict=True)
    )
    across_z, across_y, across_x = (
        voxels[len(voxels) // 2],
        voxels[:, voxels.shape[1] // 2],
        voxels[..., voxels.shape[2] // 2],
    )
    picture = np.full((len(y) + _GAP + len(z), len(x) + _GAP + len(z)), np.nan, np.float32)
    picture[: len(y), : len(x)] = across_z[np.ix_(y, x)]
    picture[: len(y), len(x) + _GAP :] = across_x.T[np.ix_(y, z)]
    picture[len(y) + _GAP :, : len(x)] = across_y[np.ix_(z, x)]
    return picture


def _draw_map(axis: Axes, brain: Brain, cubes: Sequence[dict[str, Any]]) -> None:
    """The middle section of a brain across z, with the places of its cubes."""
    depth, height, width = brain.shape
    step = max(1, max(height, width) // _MAP_PIXELS)
    middle = brain.first.read(slice(depth // 2, depth // 2 + 1))[0]
    show_raw(axis, middle[::step, ::step])
    spacing: NDArray[np.float64] = np.array(brain.spacing_um_zyx)
    axis.set_aspect(float(spacing[1] / spacing[2]))
    for cube in cubes:
        _, y, x = cube["start_zyx"]
        _, rows, columns = cube["shape_zyx"]
        axis.add_patch(
            Rectangle((x / step, y / step), columns / step, rows / step, fill=False, edgecolor=CLASS_COLOURS[0])
        )
        middle_yx = (y + rows / 2) / step, (x + columns / 2) / step
        text = axis.text(*middle_yx[::-1], str(cube["number"]), color="white", fontsize=8, ha="center", va="center")
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"places in {shorten(brain.name, 30, placeholder='…')}", fontsize=10)
    axis.set_xlabel("middle slice; cubes lie at different depths", fontsize=7, loc="left")
