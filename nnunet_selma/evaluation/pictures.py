"""Pictures of an evaluation: single cases, scores of all cases, ranks of methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from nnunet_selma.evaluation.metrics.mistakes import Mistake
from nnunet_selma.pictures.figures import (
    EXTRA,
    HIT,
    METHOD_COLOURS,
    MISSED,
    add_colour_legend,
    new_figure,
    save,
    show_mask,
    show_raw,
)
from nnunet_selma.volumes.base import Array

MISTAKES = {
    Mistake.RIGHT: (HIT, "right"),
    Mistake.MISSED: (MISSED, "missed"),
    Mistake.EXTRA: (EXTRA, "too much"),
    Mistake.SPLIT: ("#f5e663", "found as a piece apart (split)"),
    Mistake.MERGED: ("#a05195", "run into another object (merged)"),
}
"""Colour and meaning of each kind of voxel."""
_LINEAR_UP_TO = 100
"""Greatest value of a linear axis; errors above it are drawn on a logarithmic one."""


def evaluation_sheet(
    path: Path, *, title: str, raw: Array | None, truth: Array, prediction: Array, mistakes: Array
) -> None:
    """Draw one case: raw, truth, prediction and mistakes; projections along z above, the slice with most mistakes below.

    Args:
        path: PNG to write.
        title: text above the picture.
        raw: grey values (z, y, x); None leaves the column out.
        truth: mask (z, y, x).
        prediction: mask (z, y, x).
        mistakes: `Mistake` of each voxel, (z, y, x); a pixel of the projection has the most frequent kind along z.
    """
    wrong = (mistakes > Mistake.RIGHT).sum(axis=(1, 2))
    z = int(np.argmax(wrong if wrong.any() else (truth > 0).sum(axis=(1, 2))))
    titles = [*(["raw"] if raw is not None else []), "truth", "prediction", "mistakes"]
    figure = new_figure(3.3 * len(titles), 7.2)
    axes = figure.subplots(2, len(titles), squeeze=False)
    if raw is not None:
        show_raw(axes[0, 0], raw.max(axis=0))
        show_raw(axes[1, 0], raw[z])
    for column, mask in ((-3, truth > 0), (-2, prediction > 0)):
        show_mask(axes[0, column], mask.max(axis=0))
        show_mask(axes[1, column], mask[z])
    counts = np.stack([(mistakes == kind).sum(axis=0) for kind in MISTAKES])
    projected = np.where(counts.any(axis=0), np.argmax(counts, axis=0) + 1, 0)
    colours = np.array([(0, 0, 0), *(to_rgb(colour) for colour, _ in MISTAKES.values())])
    for axis, picture in zip(axes[:, -1], (projected, mistakes[z]), strict=True):
        axis.imshow(colours[picture], interpolation="nearest")
    for axis, name in zip(axes[0], titles, strict=True):
        axis.set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("projection along z", fontsize=9)
    axes[1, 0].set_ylabel(f"z = {z}, the slice with most mistakes" if wrong.any() else f"z = {z}", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    add_colour_legend(figure, dict(MISTAKES.values()))
    save(figure, path)


def score_boxes(path: Path, rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, Sequence[float]]]]]]) -> None:
    """Draw every case of every method as a dot over a box of quartiles: one row for each structure, one panel for each metric.

    Args:
        path: PNG to write.
        rows: (structure, [(metric, {method: values of its cases})]); NaN values are not drawn, their number is.
    """
    methods = list(rows[0][1][0][1])
    width = max(len(panels) for _, panels in rows)
    height = 0.9 + 0.32 * len(methods)
    figure = new_figure(3.1 * width + 0.8, max(1.9, height) * len(rows) + 0.4)
    axes = figure.subplots(len(rows), width, squeeze=False)
    jitter = np.random.default_rng(0)
    for line, (structure, panels) in zip(axes, rows, strict=True):
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        for axis, (metric, values) in zip(line, panels, strict=False):
            for place, (method, colour) in enumerate(zip(methods, _colours(len(methods)), strict=True)):
                numbers = np.asarray(values.get(method, ()), float)
                known = numbers[~np.isnan(numbers)]
                axis.boxplot(
                    [known],
                    positions=[place],
                    orientation="horizontal",
                    widths=0.6,
                    showfliers=False,
                    patch_artist=True,
                    boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour},
                    medianprops={"color": colour},
                    whiskerprops={"color": colour},
                    capprops={"color": colour},
                )
                heights = place + jitter.uniform(-0.18, 0.18, len(known))
                axis.plot(known, heights, ".", color=colour, markersize=4, alpha=0.8)
                if len(known) < len(numbers):
                    axis.annotate(
                        f"{len(numbers) - len(known)} NaN",
                        (1, place),
                        xycoords=("axes fraction", "data"),
                        ha="right",
                        va="center",
                        fontsize=7,
                        color=colour,
                    )
            if any(max(numbers, default=0) > _LINEAR_UP_TO for numbers in values.values()):
                axis.set_xscale("symlog", linthresh=10)
                axis.set_xlim(left=0)
            axis.set_yticks(range(len(methods)), methods if axis is line[0] else [""] * len(methods), fontsize=8)
            axis.set(ylim=(len(methods) - 0.5, -0.5))
            axis.tick_params(axis="x", labelsize=8)
            axis.set_xlabel(metric, fontsize=9)
        line[0].set_title(structure, fontsize=10, loc="left")
    save(figure, path)


def rank_plot(path: Path, classes: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
    """Draw mean ranks of methods, best on top: a mark for each class of structures, a bar for the overall rank.

    Args:
        path: PNG to write.
        classes: method to class of structures to mean rank.
        overall: method to overall rank, best first.
    """
    figure = new_figure(7, 1.3 + 0.42 * len(overall))
    axis = figure.subplots()
    places = range(len(overall))
    axis.barh(places, list(overall.values()), color="0.85", height=0.6, label="overall")
    names = list(next(iter(classes.values())))
    for name, colour, marker in zip(names, _colours(len(names)), "osD^vP" * len(names), strict=False):
        axis.plot([classes[m][name] for m in overall], places, marker, color=colour, label=name, markersize=7)
    for place, value in zip(places, overall.values(), strict=True):
        axis.text(0.05, place, f"{value:.3f}", va="center", fontsize=8)
    axis.set_yticks(places, list(overall), fontsize=9)
    axis.set(xlabel="mean rank (1 is best)", xlim=(0, len(overall) + 0.4), ylim=(len(overall) - 0.5, -0.5))
    figure.legend(loc="outside upper center", ncols=len(names) + 1, frameon=False, fontsize=8)
    save(figure, path)


def _colours(count: int) -> list[str]:
    """A colour for each method; after the last colour, the first one is used again."""
    return [METHOD_COLOURS[number % len(METHOD_COLOURS)] for number in range(count)]
