"""Every picture the project draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nnunet_selma.volumes.base import Array

HIT, MISSED, EXTRA = "#e8e8e8", "#ff8c42", "#3fa7d6"
"""Colours of a prediction: right, missed, too much; told apart by the colour-blind too."""
_SAMPLES = 4


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)


def loss_curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Training and validation loss of a pretraining, the trivial predictor's error beside them, and the learning rate."""
    figure = _figure(9, 4)
    losses, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    epochs = np.arange(1, len(history["train_losses"]) + 1)
    losses.plot(epochs, history["train_losses"], label="training", color="#1b6ca8")
    losses.plot(epochs, history["val_losses"], label="validation", color="#d1495b")
    losses.plot(epochs, history["trivial_error"], label="mean of what is visible", color="0.5", linestyle=":")
    losses.set(xlabel="epoch", ylabel="mean squared error of masked voxels", ylim=(0, None))
    losses.legend(frameon=False)
    rates.plot(epochs, history["lrs"], color="0.3")
    rates.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    _save(figure, path)


def reconstruction_sheet(path: Path, patches: Array, visible: Array, output: Array, mask: Array) -> None:
    """Input, masked input, output, output pasted into what is visible, and error, one row a sample.

    Args:
        path: where the PNG goes.
        patches: input, (batch, channel, *patch); the first channel and the middle slice are shown.
        visible: the input with masked voxels set to zero, same shape.
        output: the network's answer, same shape.
        mask: bool (batch, 1, *patch), True is masked.
    """
    rows = min(_SAMPLES, len(patches))
    figure = _figure(12.5, 2.6 * rows)
    axes = figure.subplots(rows, 5, squeeze=False)
    titles = ("input", "what the network sees", "output", "output in the gaps", "error in the gaps")
    for row in range(rows):
        image, seen, answer, hidden = (_middle(a[row, 0]) for a in (patches, visible, output, mask))
        low, high = np.percentile(image, (0.5, 99.5))
        filled = np.where(hidden, answer, image)
        error = np.where(hidden, np.abs(answer - image), np.nan)
        for axis, picture in zip(axes[row], (image, np.where(hidden, np.nan, seen), answer, filled), strict=False):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
            axis.set_facecolor("#20364a")
        shown = axes[row, 4].imshow(error, cmap="magma", vmin=0, vmax=max(float(high - low) / 2, 1e-6), interpolation="nearest")
        axes[row, 4].set_facecolor("white")
        figure.colorbar(shown, ax=axes[row, 4], shrink=0.8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    _save(figure, path)


def _middle(image: Array) -> Array:
    """The middle slice of a volume, or the picture itself."""
    return image[image.shape[0] // 2] if image.ndim == 3 else image


def segmentation_sheet(rows: Sequence[tuple[str, Array, Array, Mapping[str, Array]]], path: Path, background: str = "white") -> None:
    """Raw, truth and each prediction against the truth, one row a case, as maximum projections along z.

    Args:
        rows: (title, raw (z, y, x), truth 0/1 (z, y, x), {name: prediction 0/1 (z, y, x)}).
        path: where the PNG goes.
        background: colour behind the pictures.
    """
    names = list(rows[0][3])
    figure = _figure(2.6 * (2 + len(names)), 2.75 * len(rows) + 0.3)
    figure.set_facecolor(background)
    axes = figure.subplots(len(rows), 2 + len(names), squeeze=False)
    for line, (title, raw, truth, predictions) in zip(axes, rows, strict=True):
        projection = raw.max(axis=0)
        low, high = np.percentile(projection, (0.5, 99.7))
        line[0].imshow(projection, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="nearest")
        line[0].set_ylabel(title, fontsize=10)
        line[1].imshow(truth.max(axis=0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for axis, name in zip(line[2:], names, strict=True):
            axis.imshow(difference(truth, predictions[name]), interpolation="nearest")
    for axis, title in zip(axes[0], ("raw (projection)", "truth", *names), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    handles = [_patch(colour, label) for colour, label in ((HIT, "right"), (MISSED, "missed"), (EXTRA, "too much"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="0.5", label=label)


def difference(truth: Array, prediction: Array) -> Array:
    """A colour picture (y, x, 3) of the projection along z: right, missed and too much; a wrong voxel shows over a right one."""
    picture = np.zeros((*truth.shape[1:], 3))
    truth, prediction = truth > 0, prediction > 0
    for voxels, colour in ((truth & prediction, HIT), (truth & ~prediction, MISSED), (~truth & prediction, EXTRA)):
        picture[voxels.any(axis=0)] = to_rgb(colour)
    return picture
