"""Every picture the project draws."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_selma.metrics.mistakes import Mistake
from nnunet_selma.volumes.base import Array

HIT, MISSED, EXTRA = "#e8e8e8", "#ff8c42", "#3fa7d6"
"""Colours of a prediction: right, missed, too much; told apart by the colour-blind too."""
MISTAKES = {
    Mistake.RIGHT: (HIT, "right"), Mistake.MISSED: (MISSED, "missed"), Mistake.EXTRA: (EXTRA, "too much"),
    Mistake.SPLIT: ("#f5e663", "found as a piece apart (split)"), Mistake.MERGED: ("#a05195", "run into another object (merged)"),
}  # fmt: skip
_LINEAR_UP_TO = 100  # percentages, and errors that one axis can show
_METHOD_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#7a5195", "#ef9b20", "#5a6a72")
_SAMPLES = 4
_LEAST_CONTRAST = (
    1.0  # standard deviations of the normalised case: less is noise, and not worth a grey scale of its own
)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    os.replace(partial, path)


def loss_curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Losses of a pretraining, learning rate, reconstruction error beside the trivial one, and every other value of its history."""
    panels: dict[str, dict[str, str]] = {
        "loss of the pretext task": {"train_losses": "training", "val_losses": "validation"},
        "learning rate": {"lrs": ""},
        "error on masked voxels": {
            "reconstruction_error": "reconstruction",
            "trivial_error": "mean of what is visible nearby",
        },
    }
    drawn = {key for lines in panels.values() for key in lines}
    panels |= {key.replace("_", " "): {key: ""} for key in history if key not in drawn}
    panels = {title: lines for title, lines in panels.items() if any(key in history for key in lines)}
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(3.6 * columns, 2.9 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        for (key, label), colour in zip(lines.items(), ("#1b6ca8", "#d1495b"), strict=False):
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
    _save(figure, path)


def learning_picture(path: Path, stages: Mapping[str, Mapping[str, float]], errors: Mapping[str, float]) -> None:
    """How far the weights of each stage have turned from their random start, and the error of the reconstruction without each map.

    Args:
        path: PNG to write.
        stages: stage to "turned_degrees" and "size", as in ssl_summary.json.
        errors: "nothing" and each map to the error without it; empty where it was not measured.
    """
    figure = _figure(7.6 if errors else 4.2, 0.7 + 0.26 * max(len(stages), len(errors), 4))
    axes = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
    names = list(stages)
    axes[0].barh(names, [stages[name]["turned_degrees"] for name in names], color=_METHOD_COLOURS[0])
    axes[0].set(title="turned from the random start (degrees)", xlim=(0, 90))
    axes[0].set_xticks([0, 30, 60, 90])
    if errors:
        without = [name for name in errors if name != "nothing"]
        axes[1].barh(without, [errors[name] for name in without], color=_METHOD_COLOURS[1])
        axes[1].axvline(errors["nothing"], color="#333333", linestyle="--", linewidth=1)
        axes[1].set_title("error without it (dashed: with all)")
    for axis in axes:
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(9)
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
        high = max(high, low + _LEAST_CONTRAST)
        filled = np.where(hidden, answer, image)
        error = np.where(hidden, np.abs(answer - image), np.nan)
        for axis, picture in zip(axes[row], (image, np.where(hidden, np.nan, seen), answer, filled), strict=False):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_facecolor("#20364a")
        shown = axes[row, 4].imshow(error, cmap="magma", vmin=0, vmax=(high - low) / 2, interpolation="nearest")
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


def segmentation_sheet(path: Path, rows: Sequence[tuple[str, Array, Array, Mapping[str, Array]]]) -> None:
    """Raw, truth and each prediction against the truth, one row a case, in the slice with most of the structure.

    Args:
        path: where the PNG goes.
        rows: (title, raw (z, y, x), truth 0/1 (z, y, x), {name: prediction 0/1 (z, y, x)}).
    """
    names = list(rows[0][3])
    figure = _figure(2.6 * (3 + len(names)), 2.75 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), 3 + len(names), squeeze=False)
    for line, (title, raw, truth, predictions) in zip(axes, rows, strict=True):
        z = int(np.argmax((truth > 0).sum(axis=(1, 2)))) if truth.any() else len(truth) // 2
        for axis, picture in zip(line[:2], (raw.max(axis=0), raw[z]), strict=True):
            low, high = np.percentile(picture, (0.5, 99.7))
            axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="nearest")
        line[0].set_ylabel(title, fontsize=10)
        line[1].set_xlabel(f"z = {z}", fontsize=8)
        line[2].imshow(truth[z], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for axis, name in zip(line[3:], names, strict=True):
            axis.imshow(difference(truth[z], predictions[name][z]), interpolation="nearest")
    for axis, title in zip(axes[0], ("raw, projection along z", "raw, one slice", "truth", *names), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    handles = [
        Patch(facecolor=colour, edgecolor="0.5", label=label)
        for colour, label in ((HIT, "right"), (MISSED, "missed"), (EXTRA, "too much"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def difference(truth: Array, prediction: Array) -> Array:
    """A colour picture (y, x, 3) of one slice: what is right, missed and too much; the rest is black."""
    picture = np.zeros((*truth.shape, 3))
    truth, prediction = truth > 0, prediction > 0
    for pixels, colour in ((truth & prediction, HIT), (truth & ~prediction, MISSED), (~truth & prediction, EXTRA)):
        picture[pixels] = to_rgb(colour)
    return picture


def training_curves(runs: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Loss and validation Dice of several segmentation trainings, side by side."""
    figure = _figure(9, 3.8)
    losses, scores = figure.subplots(1, 2)
    for (name, run), colour in zip(runs.items(), _METHOD_COLOURS, strict=False):
        epochs = np.arange(1, len(run["train_losses"]) + 1)
        losses.plot(epochs, run["train_losses"], color=colour, label=f"{name}, training")
        losses.plot(epochs, run["val_losses"], color=colour, linestyle="--", label=f"{name}, validation")
        scores.plot(epochs, run["mean_fg_dice"], color=colour, label=name)
    losses.set(xlabel="epoch", ylabel="nnU-Net's loss (Dice and cross-entropy)")
    scores.set(xlabel="epoch", ylabel="Dice on validation patches", ylim=(0, 1))
    losses.legend(frameon=False, fontsize=8)
    scores.legend(frameon=False, fontsize=8)
    _save(figure, path)


def evaluation_sheet(
    path: Path, *, title: str, raw: Array | None, truth: Array, prediction: Array, mistakes: Array
) -> None:
    """One case: raw, truth, prediction and mistakes; projected along z above, the slice with most mistakes below.

    Args:
        path: where the PNG goes.
        title: a line or two above it.
        raw: grey values (z, y, x), or None.
        truth: mask (z, y, x).
        prediction: mask (z, y, x).
        mistakes: `Mistake` of each voxel, (z, y, x); a projected pixel shows what most of its voxels are.
    """
    wrong = (mistakes > Mistake.RIGHT).sum(axis=(1, 2))
    z = int(np.argmax(wrong if wrong.any() else (truth > 0).sum(axis=(1, 2))))
    columns = {"truth": truth > 0, "prediction": prediction > 0}
    figure = _figure(3.3 * (3 + (raw is not None)), 7.2)
    axes = figure.subplots(2, 3 + (raw is not None), squeeze=False)
    first = 0
    if raw is not None:
        first = 1
        for axis, picture in zip(axes[:, 0], (raw.max(axis=0), raw[z]), strict=True):
            low, high = np.percentile(picture, (0.5, 99.7))
            axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="nearest")
        axes[0, 0].set_title("raw", fontsize=10)
    for column, (name, mask) in enumerate(columns.items(), first):
        for axis, picture in zip(axes[:, column], (mask.any(axis=0), mask[z]), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, column].set_title(name, fontsize=10)
    counts = np.stack([(mistakes == kind).sum(axis=0) for kind in MISTAKES])
    projected = np.where(counts.any(axis=0), np.argmax(counts, axis=0) + 1, 0)
    colours = np.array([(0, 0, 0), *(to_rgb(colour) for colour, _ in MISTAKES.values())])
    for axis, picture in zip(axes[:, -1], (projected, mistakes[z]), strict=True):
        axis.imshow(colours[picture], interpolation="nearest")
    axes[0, -1].set_title("mistakes", fontsize=10)
    axes[0, 0].set_ylabel("projection along z", fontsize=9)
    axes[1, 0].set_ylabel(f"z = {z}, the slice with most mistakes" if wrong.any() else f"z = {z}", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    handles = [Patch(facecolor=colour, edgecolor="0.5", label=label) for colour, label in MISTAKES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    _save(figure, path)


def score_boxes(path: Path, rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, Sequence[float]]]]]]) -> None:
    """Every case of every method as a dot, over a box of quartiles; one row a structure, one panel a metric.

    Args:
        path: where the PNG goes.
        rows: (structure, [(metric, {method: values of its cases})]); NaN is not drawn but counted.
    """
    methods = list(rows[0][1][0][1])
    width = max(len(panels) for _, panels in rows)
    height = 0.9 + 0.32 * len(methods)
    figure = _figure(3.1 * width + 0.8, max(1.9, height) * len(rows) + 0.4)
    axes = figure.subplots(len(rows), width, squeeze=False)
    jitter = np.random.default_rng(0)
    for line, (structure, panels) in zip(axes, rows, strict=True):
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        for axis, (metric, values) in zip(line, panels, strict=False):
            for place, (method, colour) in enumerate(zip(methods, _colours(len(methods)), strict=True)):
                numbers = np.asarray(values.get(method, ()), float)
                drawn = numbers[~np.isnan(numbers)]
                axis.boxplot(
                    [drawn], positions=[place], orientation="horizontal", widths=0.6, showfliers=False, patch_artist=True,
                    boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour}, medianprops={"color": colour},
                    whiskerprops={"color": colour}, capprops={"color": colour},
                )  # fmt: skip
                heights = place + jitter.uniform(-0.18, 0.18, len(drawn))
                axis.plot(drawn, heights, ".", color=colour, markersize=4, alpha=0.8)
                if len(drawn) < len(numbers):
                    axis.annotate(
                        f"{len(numbers) - len(drawn)} NaN", (1, place), xycoords=("axes fraction", "data"),
                        ha="right", va="center", fontsize=7, color=colour,
                    )  # fmt: skip
            if any(max(numbers, default=0) > _LINEAR_UP_TO for numbers in values.values()):
                axis.set_xscale("symlog", linthresh=10)
                axis.set_xlim(left=0)
            axis.set_yticks(range(len(methods)), methods if axis is line[0] else [""] * len(methods), fontsize=8)
            axis.set(ylim=(len(methods) - 0.5, -0.5))
            axis.tick_params(axis="x", labelsize=8)
            axis.set_xlabel(metric, fontsize=9)
        line[0].set_title(structure, fontsize=10, loc="left")
    _save(figure, path)


def rank_plot(path: Path, classes: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
    """Mean ranks of methods, best on top: a mark for each class of structures, a bar for the overall rank.

    Args:
        path: where the PNG goes.
        classes: method to class of structures to mean rank.
        overall: method to overall rank, best first.
    """
    figure = _figure(7, 1.3 + 0.42 * len(overall))
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
    _save(figure, path)


def _colours(count: int) -> list[str]:
    """So many colours; the first few are told apart, further ones come round again."""
    return [_METHOD_COLOURS[number % len(_METHOD_COLOURS)] for number in range(count)]
