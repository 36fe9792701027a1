"""The picture of a whole segmentation: projections, density and sizes, on one page that can be pasted into a slide."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from nnunet_selma.pictures.figures import drawable, new_figure, save
from nnunet_selma.pictures.overview import Overview
from nnunet_selma.pictures.overview.density import DensityMap
from nnunet_selma.pictures.overview.projections import Pictures
from nnunet_selma.volumes.base import Array

CLASS_COLOURS = ("#ff9d2e", "#56b4e9", "#e377c2", "#f0e442", "#2fb58c", "#9d8cff", "#e0492f")
"""Colours of the classes, over grey; colour-blind readers can tell the first four apart (after Okabe and Ito)."""
_INK, _PALE, _BAR = "#1c2733", "#66727d", "#1b6ca8"
_TITLE, _TEXT, _SMALL = 30, 21, 18  # points; the page is twice as wide as a slide
_PANEL, _SIDE, _LEAST_HEIGHT = 9.2, 7.4, 7.8  # inches: longer side of a panel, width of the right column, least height
_LEAST_WIDTH = 4.5  # of a panel's column, inches
_MARGIN, _BETWEEN, _TOP, _BOTTOM, _LINE, _BAR_LINE = 0.4, 0.5, 2.35, 0.75, 0.36, 0.6  # inches
_LOW, _HIGH, _GAMMA = 1.0, 99.8, 0.7  # percentiles of projected grey values; beyond are hot pixels of the camera
_FAINT, _COVER = 0.4, 0.9  # opacity of the segmentation where a line has the least and the most foreground
_DENSE = 90  # percentile of the share of foreground on a line; denser lines look alike
_BINS = 36
_OUTLINED = [withStroke(linewidth=4, foreground="black")]


def overview_sheet(path: Path, overview: Overview) -> None:
    """Write the picture of a segmentation as PNG."""
    save(overview_figure(overview), path)


def overview_figure(overview: Overview) -> Figure:
    """The image along three axes, alone and with the segmentation over it, a density map and a histogram of sizes."""
    views = _Views(overview.extent_zyx, flat=overview.shape[0] == 1)
    measured = overview.spacing_um_zyx is not None
    wide, high = views.width * views.inches, views.height * views.inches
    column, body = max(wide, _LEAST_WIDTH), max(high, _LEAST_HEIGHT)
    first = "image" if views.flat else "maximum projections"
    panels = (first, "with the segmentation") if overview.raw else ("segmentation",)
    legend = _Legend.in_width(overview.classes, column)
    below = max(body + _BOTTOM, high + _BAR_LINE + _LINE * (legend.lines + 1))
    page = _Page(2 * _MARGIN + len(panels) * (column + _BETWEEN) + _SIDE, _TOP + below)
    _headline(page, overview)
    for number, title in enumerate(panels):
        axis = page.axes(_MARGIN + number * (column + _BETWEEN), _TOP, wide, high)
        last = number == len(panels) - 1
        _draw_views(axis, views, overview.raw, (overview.labels, overview.shares) if last else None)
        axis.set_title(title, fontsize=_TEXT, loc="left", color=_INK, pad=10)
        _scale_bar(axis, views, "µm" if measured else "voxels")
        if last:
            legend.draw(axis, below=_BAR_LINE / high)
    left = page.width - _MARGIN - _SIDE
    _draw_density(page, overview, (left, _TOP, _SIDE - 1.7, 0.56 * body))
    _draw_sizes(page.axes(left + 0.95, _TOP + 0.68 * body, _SIDE - 1.05, 0.32 * body), overview.sizes, measured)
    return page.figure


class _Page:
    """A figure whose axes are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure: Figure = new_figure(width, height)
        self.figure.set_layout_engine("none")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Add axes, placed in inches from the page's upper left corner."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def line(self, top: float, text: str, fontsize: float, **style: Any) -> None:
        """Add a line of text, smaller if it would be wider than the page; `top` is its upper edge, inches."""
        place = (_MARGIN / self.width, 1 - top / self.height)
        line = self.figure.text(*place, drawable(text), va="top", fontsize=fontsize, **style)
        inches = line.get_window_extent().width / self.figure.dpi
        line.set_fontsize(fontsize * min(1.0, (self.width - 2 * _MARGIN) / inches))


@dataclass(frozen=True)
class _Views:
    """Places of the three projections, in µm or voxels: along z, right of it along x, below it along y, all to one scale."""

    extent_zyx: tuple[float, float, float]
    """Size of the volume."""
    flat: bool
    """True for a single slice, which is drawn along z only."""

    @property
    def _depth(self) -> float:
        """Length that the view beside or below the first one adds."""
        return 0.0 if self.flat else self.extent_zyx[0] + self.gap

    @property
    def gap(self) -> float:
        return 0.012 * (self.extent_zyx[0] + max(self.extent_zyx[1:]))

    @property
    def width(self) -> float:
        return self.extent_zyx[2] + self._depth

    @property
    def height(self) -> float:
        return self.extent_zyx[1] + self._depth

    @property
    def inches(self) -> float:
        """Inches on the page for a µm or voxel."""
        return _PANEL / max(self.width, self.height)

    def places(self) -> list[tuple[str, float, float, float, float]]:
        """Caption, left, top, right and bottom of each view, in the order of `Pictures`."""
        z, y, x = self.extent_zyx
        first = ("along z", 0.0, 0.0, x, y)
        if self.flat:
            return [first]
        right, below = x + self.gap, y + self.gap
        return [first, ("along y", 0.0, below, x, below + z), ("along x", right, 0.0, right + z, y)]


def _headline(page: _Page, overview: Overview) -> None:
    size = f"{' × '.join(map(str, overview.shape))} voxels (z, y, x)"
    if overview.spacing_um_zyx is None:
        size += " of unknown size"
    else:
        unit, factor = ("mm", 1e-3) if max(overview.extent_zyx) >= 1000 else ("µm", 1.0)
        sides = " × ".join(_number(side * factor) for side in overview.extent_zyx)
        size += f" of {' × '.join(f'{s:.4g}' for s in overview.spacing_um_zyx)} µm, together {sides} {unit}"
    page.line(0.35, overview.name, _TITLE, fontweight="bold", color=_INK)
    page.line(0.95, size, _TEXT, color=_PALE)
    number = f"{_count(len(overview.objects))}, together {_number(100 * overview.foreground)} % of the volume"
    page.line(1.36, number, _TEXT, color=_PALE)


def _draw_views(axis: Any, views: _Views, raw: Pictures | None, labels: tuple[Pictures, Pictures] | None) -> None:
    """Draw grey values, and over them the classes, more opaque where more of a line is foreground."""
    greys = _greys(raw)
    for number, (caption, left, top, right, bottom) in enumerate(views.places()):
        # along x the picture is (z, y), and z runs to the right
        turn = np.transpose if caption == "along x" else np.asarray
        place = {"extent": (left, right, bottom, top), "interpolation": "nearest"}
        axis.imshow(turn(greys[number]), cmap="gray", vmin=0, vmax=1, **place)
        if labels is not None:
            bits, shares = (turn(pictures[number]) for pictures in labels)
            axis.imshow(class_picture(bits, shares, _dense(shares)), **place)
        _caption(axis, caption, left, top, (right - left) * views.inches, (bottom - top) * views.inches, views.inches)
    axis.set(xlim=(0, views.width), ylim=(views.height, 0), aspect="auto")
    axis.set_axis_off()


def _caption(axis: Any, caption: str, left: float, top: float, wide: float, high: float, inches: float) -> None:
    """Write the caption of a view into its corner, if it has room for it; `wide` and `high` are inches."""
    upright = wide < 1.2
    if min(wide, high) > 0.45 and max(wide, high) > 1.2:
        axis.text(
            left + 0.12 / inches,
            top + 0.1 / inches,
            caption,
            fontsize=_SMALL,
            color="white",
            va="top",
            path_effects=_OUTLINED,
            rotation=90 if upright else 0,
        )


def class_picture(bits: Array, shares: Array, dense: float) -> Array:
    """Colours and opacity (y, x, 4) of projected class bits; the mean colour where several classes lie on one line.

    Args:
        bits: bits of the classes on each line, (y, x).
        shares: share of each line that is foreground, (y, x).
        dense: share from which on the opacity is greatest.
    """
    colours = np.array([to_rgb(colour) for colour in CLASS_COLOURS])
    there = (bits[..., None] >> np.arange(len(colours)) & 1).astype(float)  # (y, x, class)
    number = there.sum(axis=-1, keepdims=True)
    cover = _FAINT + (_COVER - _FAINT) * np.clip(shares / dense, 0, 1)
    return np.concatenate([there @ colours / np.maximum(number, 1), (number > 0) * cover[..., None]], axis=-1)


def _dense(shares: Array) -> float:
    """The share that a tenth of the lines with foreground exceed."""
    there = shares[shares > 0]
    return float(np.percentile(there, _DENSE)) if there.size else 1.0


def _greys(raw: Pictures | None) -> Pictures:
    """Grey values from 0 to 1; black without an image."""
    if raw is None:
        black = np.zeros((1, 1))
        return black, black, black
    values = np.concatenate([picture[np.isfinite(picture)] for picture in raw])
    low, high = np.percentile(values, (_LOW, _HIGH)) if values.size else (0.0, 1.0)
    width = max(high - low, 1e-6 * max(1.0, abs(low)))
    z, y, x = (
        np.clip((np.nan_to_num(picture, neginf=low, posinf=high) - low) / width, 0, 1) ** _GAMMA for picture in raw
    )
    return z, y, x


def _scale_bar(axis: Any, views: _Views, unit: str) -> None:
    """Draw one scale bar below the views."""
    length = _round_below(0.3 * views.width)
    text = f"{length / 1000:g} mm" if unit == "µm" and length >= 1000 else f"{length:g} {unit}"
    level = views.height + 0.32 / views.inches
    axis.plot((0, length), (level, level), color=_INK, linewidth=6, solid_capstyle="butt", clip_on=False)
    axis.text(length + 0.15 / views.inches, level, text, fontsize=_TEXT, color=_INK, va="center")


def _round_below(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20, … that is no longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)))


@dataclass(frozen=True)
class _Legend:
    """Names of the classes, below a panel."""

    classes: Mapping[int, str]
    columns: int

    @staticmethod
    def in_width(classes: Mapping[int, str], width: float) -> "_Legend":
        """A legend with as many names in a line as fit into a width in inches."""
        widest = 0.9 + 0.15 * max((len(name) for name in classes.values()), default=0)
        return _Legend(classes, min(max(1, int(width / widest)), max(1, len(classes))))

    @property
    def lines(self) -> int:
        return -(-max(1, len(self.classes)) // self.columns)

    def draw(self, axis: Any, below: float) -> None:
        """Draw the legend below an axis; `below` is the distance, as a share of the axis's height."""
        if not self.classes:
            axis.text(
                0, -below, "the segmentation is empty", transform=axis.transAxes, va="top", fontsize=_SMALL, color=_PALE
            )
            return
        handles = [Patch(facecolor=CLASS_COLOURS[bit], label=name) for bit, name in self.classes.items()]
        axis.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0, -below),
            ncols=self.columns,
            frameon=False,
            fontsize=_SMALL,
            borderaxespad=0,
            borderpad=0,
            handlelength=1,
            labelcolor=_INK,
        )


def _draw_density(page: _Page, overview: Overview, room: tuple[float, float, float, float]) -> None:
    """Draw the density map with its colour bar; `room` is left, top, width and height in inches."""
    left, top, wide, high = room
    _, height, width = overview.extent_zyx
    inches = min(wide / width, high / height)
    axis = page.axes(left, top, width * inches, height * inches)
    values = overview.density.values
    bottom, right = (n * edge for n, edge in zip(values.shape, overview.density.square_yx, strict=True))
    picture = axis.imshow(
        values,
        cmap="inferno",
        vmin=0,
        vmax=float(values.max()) or 1.0,
        extent=(0, right, bottom, 0),
        interpolation="nearest",
        aspect="auto",
    )
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.set_title(
        _density_title(overview.density, overview.spacing_um_zyx is not None),
        fontsize=_TEXT,
        loc="left",
        color=_INK,
        pad=10,
    )
    if not values.any():
        axis.text(
            0.5, 0.5, "no foreground", fontsize=_TEXT, color="0.8", ha="center", va="center", transform=axis.transAxes
        )
        return
    bar = page.figure.colorbar(
        picture, cax=page.axes(left + width * inches + 0.18, top, 0.28, max(1.5, height * inches))
    )
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_SMALL, colors=_INK, length=0)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _density_title(density: DensityMap, measured: bool) -> str:
    edge = max(density.square_yx)
    size = f"{edge / 1000:.2g} mm" if measured and edge >= 1000 else f"{edge:.3g} {'µm' if measured else 'voxels'}"
    return f"{density.unit}, along z, in squares of {size}"


def _draw_sizes(axis: Any, sizes: Array, measured: bool) -> None:
    """Draw a histogram of the objects' sizes on a logarithmic axis."""
    unit = "µm³" if measured else "voxels"
    if not len(sizes):
        axis.set_axis_off()
        axis.text(
            0.5, 0.5, "no objects", fontsize=_TITLE, color=_PALE, ha="center", va="center", transform=axis.transAxes
        )
        return
    low, high, median = sizes.min(), sizes.max(), float(np.median(sizes))
    if high < 10 * low:  # a decade at least, so that equal sizes are one bar and not a wall
        low, high = np.sqrt(low * high / 10), np.sqrt(low * high * 10)
    axis.hist(sizes, bins=np.geomspace(low * 0.999, high * 1.001, _BINS), color=_BAR)
    axis.axvline(median, color=_INK, linewidth=3, linestyle=(0, (2, 1)))
    axis.set_xscale("log")
    if high < 30 * low:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: _power(value))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title = f"{_count(len(sizes))}, median {_number(median)} {unit}"
    axis.set_title(title, fontsize=_TEXT, loc="left", color=_INK, pad=10)
    axis.set_xlabel(f"volume of an object, {unit}", fontsize=_SMALL, color=_INK)
    axis.set_ylabel("objects", fontsize=_SMALL, color=_INK)
    axis.tick_params(labelsize=_SMALL, colors=_INK)
    axis.spines[["top", "right"]].set_visible(False)


def _count(objects: int) -> str:
    return f"{objects:,} object" if objects == 1 else f"{objects:,} objects"


def _power(value: float) -> str:
    """Text of a tick on a logarithmic axis."""
    if value < 1e5:
        return f"{value:,.6g}"
    power = int(np.floor(np.log10(value) + 1e-9))
    digit = round(value / 10**power)
    return f"$10^{{{power}}}$" if digit == 1 else f"${digit}\\cdot10^{{{power}}}$"


def _number(value: float) -> str:
    """Three digits, or more where a whole number has more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
