"""The two figures of the pretraining study."""

import os
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator
from PIL import Image

from benchmarks.pretraining.intervals import Run, last_common_step, mean_interval, of_arm
from benchmarks.pretraining.tables import AVERAGE_PRECISION, CALIBRATED_DICE, STRUCTURES, numbers_of_patches

# the palette of Okabe and Ito, which the colour-blind can tell apart; black is for the first arm, the baseline
_STYLES = (
    ("#000000", "o"),
    ("#0072b2", "s"),
    ("#d55e00", "D"),
    ("#009e73", "^"),
    ("#cc79a7", "v"),
    ("#e69f00", "P"),
    ("#56b4e9", "X"),
)
_APART = 1.035  # factor between the arms on the axis of patches, so that their seeds lie side by side
_LABEL_SIZE = 14
_COLUMNS = 2  # of the legend, so that long names of arms fit
_SHADES = 96  # enough for lines and bands


def label_efficiency(runs: Sequence[Run], path: Path, arms: Sequence[str], all_patches: int | None = None) -> None:
    """Calibrated Dice over the number of annotated patches at the last common step, a panel a structure.

    Args:
        runs: fine-tuning runs of the arms with different numbers of annotated patches.
        path: where the PNG goes.
        arms: names of the arms that are drawn, the baseline first.
        all_patches: number of patches that "all" stands for; None places "all" at twice the largest number.
    """
    steps = last_common_step(runs)
    numbers = numbers_of_patches(runs)
    counts = [number for number in numbers if number is not None]
    places = {number: number or all_patches or 2 * max(counts, default=1) for number in numbers}
    figure, axes = _panels(1, 2, 12, 6.2)
    for axis, (structure, name) in zip(axes, STRUCTURES.items(), strict=True):
        for place, (arm, (colour, marker)) in enumerate(_styles(arms).items()):
            aside = _APART ** (place - (len(arms) - 1) / 2)
            drawn, means, lows, highs = [], [], [], []
            for number, x in places.items():
                with_patches = [run for run in of_arm(runs, arm) if run.labels == number]
                interval = mean_interval(with_patches, steps, CALIBRATED_DICE, structure, draws=0)
                if isnan(interval.mean):
                    continue
                seeds = [100 * value for value in interval.per_seed.values()]
                drawn.append(x * aside)
                means.append(100 * interval.mean)
                lows.append(min(seeds))
                highs.append(max(seeds))
                axis.plot([x * aside] * len(seeds), seeds, marker, color=colour, markersize=4, mew=0, zorder=4)
            axis.fill_between(drawn, lows, highs, color=colour, alpha=0.13, linewidth=0)
            axis.plot(drawn, means, marker=marker, color=colour, label=arm, linewidth=2.2, markersize=10, mfc="white")
        axis.set_xscale("log")
        _ticks(axis, {x: "all" if number is None else str(number) for number, x in places.items()})
        axis.set_xlabel("annotated patches", fontsize=_LABEL_SIZE)
        axis.set_title(name, fontsize=_LABEL_SIZE, fontweight="bold")
    axes[0].set_ylabel("Dice, calibrated threshold (%)", fontsize=_LABEL_SIZE)
    _finish(
        figure,
        axes[0],
        path,
        f"Dice by number of annotated patches, after {steps} steps of fine-tuning",
        "line: mean over cubes and seeds; band: lowest to highest seed; small marks: single seeds",
    )


def learning_curves(runs: Sequence[Run], path: Path, arms: Sequence[str]) -> None:
    """Average precision and calibrated Dice of both structures over the steps of fine-tuning, in four panels.

    Args:
        runs: fine-tuning runs of the arms, with the same number of annotated patches.
        path: where the PNG goes.
        arms: names of the arms that are drawn, the baseline first.
    """
    curve = sorted({steps for run in runs for steps in run.points})
    metrics = {AVERAGE_PRECISION: "average precision (%)", CALIBRATED_DICE: "Dice, calibrated threshold (%)"}
    figure, axes = _panels(2, 2, 12, 9.6)
    panels = [(structure, metric) for structure in STRUCTURES for metric in metrics]
    for axis, (structure, metric) in zip(axes, panels, strict=True):
        for arm, (colour, marker) in _styles(arms).items():
            intervals = {steps: mean_interval(of_arm(runs, arm), steps, metric, structure, draws=0) for steps in curve}
            scored = {steps: interval for steps, interval in intervals.items() if not isnan(interval.mean)}
            seeds = [[100 * value for value in interval.per_seed.values()] for interval in scored.values()]
            means = [100 * interval.mean for interval in scored.values()]
            axis.fill_between(
                list(scored), [min(s) for s in seeds], [max(s) for s in seeds], color=colour, alpha=0.13, linewidth=0
            )
            axis.plot(list(scored), means, marker=marker, color=colour, label=arm, linewidth=2.2, markersize=7)
        axis.set_xscale("log", base=2)
        _ticks(axis, {steps: str(steps) for steps in curve})
        axis.set_ylabel(metrics[metric], fontsize=_LABEL_SIZE)
        axis.set_title(STRUCTURES[structure], fontsize=_LABEL_SIZE, fontweight="bold")
    for axis in axes[2:]:
        axis.set_xlabel("steps of fine-tuning", fontsize=_LABEL_SIZE)
    _finish(
        figure,
        axes[0],
        path,
        "Segmentation as fine-tuning goes on, with and without pretraining",
        "line: mean over cubes and seeds; band: lowest to highest seed",
    )


def _styles(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm → colour and marker; with more arms than styles they come round again."""
    return {arm: _STYLES[number % len(_STYLES)] for number, arm in enumerate(arms)}


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axisbelow(True)
        axis.grid(axis="y", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=_LABEL_SIZE - 1)
    return figure, axes


def _ticks(axis: Any, labels: Mapping[int, str]) -> None:
    axis.set_xticks(list(labels), list(labels.values()))
    axis.xaxis.set_minor_locator(NullLocator())


def _finish(figure: Figure, labelled: Any, path: Path, title: str, explanation: str) -> None:
    """Add title and legend, and write the PNG under a temporary name before it takes its place."""
    figure.suptitle(f"{title}\n{explanation}", fontsize=_LABEL_SIZE)
    handles, labels = labelled.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(_COLUMNS, max(1, len(labels))),
        frameon=False,
        fontsize=_LABEL_SIZE,
    )
    canvas = FigureCanvasAgg(figure)
    partial = path.with_name(path.name + ".partial")
    figure.set_dpi(110)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(_SHADES).save(partial, format="png", optimize=True)  # a palette halves the file
    os.replace(partial, path)
