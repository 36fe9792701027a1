"""Pictures of trainings, reconstructions and segmentations."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array

HIT, MISSED, EXTRA = "#e8e8e8", "#ff8c42", "#3fa7d6"
"""Colours of a prediction: right, missed, too much; the colour-blind can tell them apart too."""
METHOD_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#7a5195", "#ef9b20", "#5a6a72")
_MOST_SAMPLES = 4
_LEAST_CONTRAST = 1.0
"""Least range of a grey scale, in standard deviations of the normalised case; a smaller range would show noise."""

# a letter that the font lacks, as in Chinese names, is drawn as a box
warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; it needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def drawable(text: str) -> str:
    """Text that matplotlib draws: bytes of a file name that are no letters become their code."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    for text in figure.findobj(Text):
        text.set_text(drawable(text.get_text()))
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def show_raw(axis: Axes, picture: Array) -> None:
    """Draw grey values (y, x); black and white are their percentiles 0.5 and 99.7."""
    low, high = np.percentile(picture, (0.5, 99.7))
    axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="nearest")


def show_mask(axis: Axes, mask: Array) -> None:
    """Draw a mask (y, x) in black and white."""
    axis.imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def add_colour_legend(figure: Figure, names: Mapping[str, str]) -> None:
    """Explain colours below a figure; `names` is colour to meaning."""
    handles = [Patch(facecolor=colour, edgecolor="0.5", label=name) for colour, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def loss_curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the history of a pretraining: losses, learning rate, reconstruction error beside the trivial one, and every other value.

    Args:
        history: name of a value, as in ssl_summary.json, to its value in each epoch.
        path: PNG to write.
    """
    panels: dict[str, dict[str, str]] = {
        "loss of the pretext task": {"train_losses": "training", "val_losses": "validation"},
        "learning rate": {"lrs": ""},
        "error on masked voxels": {
            "reconstruction_error": "reconstruction",
            "trivial_error": "mean of what is visible nearby",
        },
    }
    in_panels = {key for lines in panels.values() for key in lines}
    panels |= {key.replace("_", " "): {key: ""} for key in history if key not in in_panels}
    panels = {title: lines for title, lines in panels.items() if any(key in history for key in lines)}
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.6 * columns, 2.9 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        for (key, label), colour in zip(lines.items(), METHOD_COLOURS, strict=False):
            if key in history:
                axis.plot(np.arange(1, len(history[key]) + 1), history[key], label=label or None, color=colour)
        values = [value for key in lines for value in history.get(key, ())]
        axis.set(xlabel="epoch", title=title)
        if values and min(values) >= 0:
            axis.set_ylim(0, 1.1 * max(max(values), 1e-9))
        if any(lines.values()):
            axis.legend(frameon=False, fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    save(figure, path)


def learning_picture(path: Path, stages: Mapping[str, Mapping[str, float]], errors: Mapping[str, float]) -> None:
    """Draw how far the weights of each stage have turned from their random start, and the error of the reconstruction without each map.

    Args:
        path: PNG to write.
        stages: stage to its "turned_degrees", as in ssl_summary.json.
        errors: each map to the error without it, and "nothing" to the error with all maps; empty if not measured.
    """
    figure = new_figure(7.6 if errors else 4.2, 0.7 + 0.26 * max(len(stages), len(errors), 4))
    axes = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
    names = list(stages)
    axes[0].barh(names, [stages[name]["turned_degrees"] for name in names], color=METHOD_COLOURS[0])
    axes[0].set(title="turned from the random start (degrees)", xlim=(0, 90))
    axes[0].set_xticks([0, 30, 60, 90])
    if errors:
        without = [name for name in errors if name != "nothing"]
        axes[1].barh(without, [errors[name] for name in without], color=METHOD_COLOURS[1])
        axes[1].axvline(errors["nothing"], color="#333333", linestyle="--", linewidth=1)
        axes[1].set_title("error without it (dashed: with all)")
    for axis in axes:
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(9)
    save(figure, path)


def reconstruction_sheet(path: Path, patches: Array, visible: Array, output: Array, mask: Array) -> None:
    """Draw input, masked input, output, output in the gaps, and error, one row for each of the first samples.

    Args:
        path: PNG to write.
        patches: input, (batch, channel, *patch); the middle slice of the first channel is drawn.
        visible: input with masked voxels set to zero, same shape.
        output: output of the network, same shape.
        mask: bool (batch, 1, *patch), True where masked.
    """
    rows = min(_MOST_SAMPLES, len(patches))
    figure = new_figure(12.5, 2.6 * rows)
    axes = figure.subplots(rows, 5, squeeze=False)
    titles = ("input", "what the network sees", "output", "output in the gaps", "error in the gaps")
    for row in range(rows):
        image, seen, result, hidden = (_middle(a[row, 0]) for a in (patches, visible, output, mask))
        low, high = np.percentile(image, (0.5, 99.5))
        high = max(high, low + _LEAST_CONTRAST)
        filled = np.where(hidden, result, image)
        error = np.where(hidden, np.abs(result - image), np.nan)
        for axis, picture in zip(axes[row], (image, np.where(hidden, np.nan, seen), result, filled), strict=False):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_facecolor("#20364a")
        drawn = axes[row, 4].imshow(error, cmap="magma", vmin=0, vmax=(high - low) / 2, interpolation="nearest")
        axes[row, 4].set_facecolor("white")
        figure.colorbar(drawn, ax=axes[row, 4], shrink=0.8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def _middle(image: Array) -> Array:
    """The middle slice of a volume, or the picture itself."""
    return image[image.shape[0] // 2] if image.ndim == 3 else image


def segmentation_sheet(path: Path, rows: Sequence[tuple[str, Array, Array, Mapping[str, Array]]]) -> None:
    """Draw raw, truth and each prediction against the truth, one row for each case, in the slice with most foreground.

    Args:
        path: PNG to write.
        rows: (title, raw (z, y, x), truth 0/1 (z, y, x), {name: prediction 0/1 (z, y, x)}).
    """
    names = list(rows[0][3])
    figure = new_figure(2.6 * (3 + len(names)), 2.75 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), 3 + len(names), squeeze=False)
    for line, (title, raw, truth, predictions) in zip(axes, rows, strict=True):
        z = int(np.argmax((truth > 0).sum(axis=(1, 2)))) if truth.any() else len(truth) // 2
        for axis, picture in zip(line[:2], (raw.max(axis=0), raw[z]), strict=True):
            show_raw(axis, picture)
        line[0].set_ylabel(title, fontsize=10)
        line[1].set_xlabel(f"z = {z}", fontsize=8)
        show_mask(line[2], truth[z])
        for axis, name in zip(line[3:], names, strict=True):
            axis.imshow(difference(truth[z], predictions[name][z]), interpolation="nearest")
    for axis, title in zip(axes[0], ("raw, projection along z", "raw, one slice", "truth", *names), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    add_colour_legend(figure, {HIT: "right", MISSED: "missed", EXTRA: "too much"})
    save(figure, path)


def difference(truth: Array, prediction: Array) -> Array:
    """Colours (y, x, 3) of one slice of a prediction: right, missed and too much; the background is black."""
    picture = np.zeros((*truth.shape, 3))
    truth, prediction = truth > 0, prediction > 0
    for pixels, colour in ((truth & prediction, HIT), (truth & ~prediction, MISSED), (~truth & prediction, EXTRA)):
        picture[pixels] = to_rgb(colour)
    return picture


def training_curves(runs: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw loss and validation Dice of several segmentation trainings.

    Args:
        runs: name of a training to the values that nnU-Net logged: `train_losses`, `val_losses`, `mean_fg_dice`.
        path: PNG to write.
    """
    figure = new_figure(9, 3.8)
    losses, scores = figure.subplots(1, 2)
    for (name, run), colour in zip(runs.items(), METHOD_COLOURS, strict=False):
        epochs = np.arange(1, len(run["train_losses"]) + 1)
        losses.plot(epochs, run["train_losses"], color=colour, label=f"{name}, training")
        losses.plot(epochs, run["val_losses"], color=colour, linestyle="--", label=f"{name}, validation")
        scores.plot(epochs, run["mean_fg_dice"], color=colour, label=name)
    losses.set(xlabel="epoch", ylabel="nnU-Net's loss (Dice and cross-entropy)")
    scores.set(xlabel="epoch", ylabel="Dice on validation patches", ylim=(0, 1))
    losses.legend(frameon=False, fontsize=8)
    scores.legend(frameon=False, fontsize=8)
    save(figure, path)
