"""Draws docs/corners.png: corner cases, in which the official metrics are misleading. Run: python docs/corners.py."""

import json
import sys
from math import isnan
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_selma.evaluation.metrics.editions import edition
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.structures import named

SHAPE = (7, 16, 32)


def mask(*boxes):
    """Boxes (y from, y to, x from, x to), as many slices thick as they are high."""
    drawn = np.zeros(SHAPE, bool)
    for y0, y1, x0, x1 in boxes:
        thick = y1 - y0
        drawn[1 : 1 + thick, y0:y1, x0:x1] = True
    return drawn


EMPTY, UPPER, LOWER = mask(), mask((3, 6, 4, 27)), mask((10, 13, 4, 27))
CUBE, BESIDE = mask((6, 10, 8, 12)), mask((6, 10, 9, 13))

CORNERS = {
    "the prediction is elsewhere": (UPPER, LOWER),
    "nothing is predicted": (UPPER, EMPTY),
    "nothing is there, nothing is predicted": (EMPTY, EMPTY),
    "an even edge leaves no skeleton": (CUBE, BESIDE),
}
"""Name to truth and prediction."""


def values(truth, prediction):
    """Metric to (official 2024, official 2026, corrected)."""
    pair = Pair(prediction, truth)
    tree, spot = named("blood_vessel"), named("cfos_neuron")
    old, new = edition(2024), edition(2026)
    return {
        "clDice": (
            old.score(pair, tree)["cldice"],
            new.score(pair, tree)["cldice"],
            new.corrected(pair, tree)["cldice"],
        ),
        "PQ": (None, new.score(pair, spot)["panoptic_quality"], new.corrected(pair, spot)["panoptic_quality"]),
    }


def formatted(value):
    """Three digits, NaN, or a dash where the edition has no such metric."""
    return "–" if value is None else "NaN" if isnan(value) else f"{value:.3f}"


def description():
    """Every number of the rows as text; the picture keeps it, so that a test can tell if the picture is out of date."""
    return json.dumps(
        {name: {m: [*map(formatted, v)] for m, v in values(*masks).items()} for name, masks in CORNERS.items()}
    )


def draw(path):
    """Draw one row for each corner case: truth, prediction, and the values of each edition; below, the effect of a NaN on a mean."""
    figure = Figure(figsize=(10.5, 9.6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(len(CORNERS), 1.25))
    axes = upper.subplots(len(CORNERS), 3, width_ratios=(1, 1, 1.1))
    for line, (name, (truth, prediction)) in zip(axes, CORNERS.items(), strict=True):
        for axis, image in zip(line, (truth, prediction), strict=False):
            axis.imshow(image.any(axis=0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_title(name, fontsize=10, loc="left")
        line[0].set_ylabel("truth", fontsize=9)
        line[1].set_ylabel("prediction", fontsize=9)
        rows = [[metric, *map(formatted, numbers)] for metric, numbers in values(truth, prediction).items()]
        table = line[2].table(rows, colLabels=["", "2024", "2026", "corrected"], loc="center", cellLoc="center")
        table.scale(1, 1.7)
        line[2].set_axis_off()
    axis = lower.subplots()
    lower.suptitle("one case without a value takes the mean away (clDice, 2026)", fontsize=10, x=0.01, ha="left")
    wide = mask((3, 6, 4, 19))
    pairs = [Pair(p, UPPER) for p in (UPPER, wide, mask((4, 7, 4, 27)), LOWER)]
    rules, tree = edition(2026), named("blood_vessel")
    official = np.array([rules.score(pair, tree)["cldice"] for pair in pairs])
    corrected = np.array([rules.corrected(pair, tree)["cldice"] for pair in pairs])
    places = np.arange(len(pairs))
    axis.plot(
        places,
        official,
        "o",
        color="#1b6ca8",
        markersize=9,
        label=f"official; their mean is {formatted(official.mean())}",
    )
    axis.plot(
        places,
        corrected,
        "x",
        color="#d1495b",
        markersize=9,
        label=f"corrected; their mean is {formatted(corrected.mean())}",
    )
    for place in places[np.isnan(official)]:
        axis.annotate(
            "official: NaN", (place, corrected[place]), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    axis.set_xticks(places, ["equal", "a third missing", "shifted by a voxel", "elsewhere"])
    axis.set(ylim=(-0.1, 1.1), xlim=(-0.5, len(pairs) - 0.5), ylabel="clDice")
    axis.legend(frameon=False, fontsize=9, loc="center left")
    figure.savefig(path, dpi=90, metadata={"Description": description()})


if __name__ == "__main__":
    draw(Path(__file__).with_name("corners.png"))
    sys.exit(0)
