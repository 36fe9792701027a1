"""The tissue map: a picture and a few lines that say, before the first block, where a volume is predicted."""

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np

from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.morphology.tissue import TissueGrid
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.volume_prediction import TISSUE_MAP
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array

_PARTS = 10
"""Parts of the depth whose shares are said."""
_MOSTLY_EMPTY = 0.5
"""Share of tissue below which the statistics of a volume are those of its outside."""
_OUTLINE = "#ff8c42"


def report_tissue(run: Run, say: Callable[[str], None]) -> None:
    """Draw the tissue map into the folder of a run whose slabs are read, and say the share of tissue, of the whole and along z.

    Args:
        run: the run.
        say: receives the sentences, among them a warning where the network sees statistics of a mostly empty volume.
    """
    settings, tissue = run.settings, run.tissue
    picture = run.folder / TISSUE_MAP
    if not picture.is_file() and run.blocks_to_do():  # else it has its final name already
        partial = run.folder / f"{uuid4().hex[:8]}.{TISSUE_MAP}"  # shares draw at the same time
        draw_tissue(partial, run.means, tissue, run.facts.spacing_um_zyx)
        os.replace(partial, picture)
    say(f"tissue: {tissue.share:.0%} of the volume, the rest is not predicted; {picture} shows it")
    if not tissue.boxes.all():
        shares = ", ".join(f"{share:.0%}" for share in shares_along_z(tissue.boxes))
        say(f"predicted along z, in equal parts from slice 0: {shares}")
    if run.facts.by_image and settings.statistics == "volume" and tissue.share < _MOSTLY_EMPTY:
        say(
            f"warning: the model normalises by the mean and deviation of the volume, of which {1 - tissue.share:.0%} is empty; its training images "
            "had less, and its network has no instance norm that evens this out: --statistics tissue takes those of tissue"
        )


def shares_along_z(boxes: Mask) -> list[float]:
    """Share of the grid boxes (z, y, x) that are predicted, in ten equal parts of the depth, or each layer where there are fewer."""
    return [float(part.mean()) for part in np.array_split(boxes, min(_PARTS, len(boxes)))]


def draw_tissue(path: Path, means: Array, tissue: TissueGrid, spacing_um_zyx: SpacingUm | None) -> None:
    """Draw what is predicted over the brightness of the grid boxes, along each axis.

    The upper row has the maximum along an axis, with the outline of all that is predicted; the lower row the middle section.

    Args:
        path: PNG to write.
        means: mean log intensity of the grid boxes (z, y, x).
        tissue: the boxes that are predicted.
        spacing_um_zyx: voxel size, µm, for the proportions; None for cubes.
    """
    from nnunet_selma.pictures.figures import new_figure, save

    edges = [edge * size for edge, size in zip(tissue.box, spacing_um_zyx or (1.0, 1.0, 1.0), strict=True)]
    figure = new_figure(8.4, 5.8)
    low, high = float(means.min()), float(means.max())
    for axis, (name, across, along) in enumerate((("z", "y", "x"), ("y", "z", "x"), ("x", "z", "y"))):
        aspect = edges["zyx".index(across)] / edges["zyx".index(along)]
        middle = means.shape[axis] // 2
        views = {
            f"maximum along {name}": (means.max(axis=axis), tissue.boxes.any(axis=axis)),
            f"middle section across {name}": (means.take(middle, axis), tissue.boxes.take(middle, axis)),
        }
        for row, (title, (brightness, predicted)) in enumerate(views.items()):
            panel = figure.add_subplot(2, 3, 3 * row + axis + 1)
            panel.imshow(
                brightness, cmap="gray", vmin=low, vmax=max(high, low + 1e-3), aspect=aspect, interpolation="nearest"
            )
            if predicted.any():
                rows, columns = (np.arange(-1, length + 1) for length in predicted.shape)
                panel.contour(columns, rows, np.pad(predicted, 1).astype(float), [0.5], colors=_OUTLINE, linewidths=1.2)
            panel.set(xticks=[], yticks=[], xlabel=along, ylabel=across)
            panel.set_title(title, fontsize=9)
    figure.suptitle(
        f"predicted: {tissue.share:.0%} of the volume, within the outline (grey: logarithm of the intensity)",
        fontsize=11,
    )
    save(figure, path)
