"""The demo's report: trainings, segmentations and scores, from the files that the runs left."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.evaluation import Evaluation, read_evaluation
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.evaluation.sections import Table, as_html, html_list, html_table
from nnunet_selma.finetuning.pretrained import SUMMARY
from nnunet_selma.pictures import figures
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import named
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

_MOST_PICTURED = 6
_EQUAL = 0.02
"""Methods whose mean Dice differs by no more than this are called equally good."""
_CAUTION = "One training each, on a handful of patches: another seed can turn the order of two trained models."
"""A second run with another seed moves a mean over so few patches by several hundredths."""


@dataclass(frozen=True)
class Comparison:
    """Segmentations of the same unseen patches."""

    images: Path
    """Folder of `<case>_0000.nii.gz`."""
    references: Path
    """Folder of `<case>.nii.gz`."""
    predictions: Mapping[str, Path]
    """Name of a method to its folder of `<case>.nii.gz`; the picture shows the first two."""
    evaluations: Mapping[int, Path]
    """Edition to the folder that `nnunet-selma evaluate` wrote for these segmentations."""

    def draw(self, path: Path, cases: Mapping[str, str]) -> None:
        """Draw raw, truth and the first two methods of some cases, given with their titles."""
        methods = list(self.predictions.items())[:2]
        rows = [
            (
                title,
                _voxels(self.images / f"{case}_0000.nii.gz"),
                _voxels(self.references / f"{case}.nii.gz"),
                {name: _voxels(folder / f"{case}.nii.gz") for name, folder in methods},
            )
            for case, title in cases.items()
        ]
        figures.segmentation_sheet(path, rows)


def _voxels(path: Path) -> Array:
    return open_volume(path).read()


@dataclass(frozen=True)
class MeanDice:
    """Mean Dice of each method over some cases."""

    name: str
    cases: int
    methods: dict[str, float]


def mean_dice(scores: Sequence[CaseScore]) -> list[MeanDice]:
    """One mean for each structure, over its cases, and last the mean over the structures."""
    values: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        of_structure = values.setdefault(named(score.structure).title, {})
        of_structure.setdefault(score.method, []).append(score.official["dice"])
    means = [
        MeanDice(name, len(next(iter(dice.values()))), {method: float(np.mean(d)) for method, d in dice.items()})
        for name, dice in values.items()
    ]
    overall = {method: float(np.mean([mean.methods[method] for mean in means])) for method in means[0].methods}
    return [*means, MeanDice("mean of the structures", sum(mean.cases for mean in means), overall)]


def dice_table(means: Sequence[MeanDice]) -> Table:
    """The means as a table, the last of them as its row of means, with the best method of each row marked."""
    rows = [[mean.name, str(mean.cases), *(f"{dice:.3f}" for dice in mean.methods.values())] for mean in means]
    best = [
        (row, column)
        for row, mean in enumerate(means)
        for column, dice in enumerate(mean.methods.values(), 2)
        if dice == max(mean.methods.values())
    ]
    return Table(head=["structure", "cases", *means[0].methods], rows=rows, mean_row=True, best=best)


def write_report(
    folder: Path,
    comparison: Comparison,
    pretraining: Path,
    finetunings: Mapping[str, Path],
    commands: Sequence[tuple[str, float]],
    *,
    synthetic: bool,
    brain: Path | None = None,
) -> Path:
    """Write tables, pictures and `report.html` into a folder; returns the page.

    Args:
        folder: where to write.
        comparison: the segmentations to compare.
        pretraining: the fold folder of a pretraining.
        finetunings: name to fold folder of the segmentation trainings whose curves are compared.
        commands: (command line, seconds) in the order they ran.
        synthetic: True if the data were drawn; the page says so.
        brain: folder, in this one, with the picture and the objects of a whole brain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = read_json(pretraining / SUMMARY)
    evaluations = {path: read_evaluation(path) for path in comparison.evaluations.values()}
    scores = next(iter(evaluations.values())).scores
    figures.loss_curves(summary["history"], folder / "pretraining.png")
    for picture in ("reconstruction.png", "learning.png"):
        (folder / picture).write_bytes((pretraining / picture).read_bytes())
    figures.training_curves({name: _logged(path) for name, path in finetunings.items()}, folder / "finetuning.png")
    comparison.draw(folder / "segmentation.png", _first_cases(scores))
    page = folder / "report.html"
    text = _page(summary, mean_dice(scores), evaluations, commands, synthetic=synthetic, brain=brain)
    page.write_text(text, encoding="utf-8", errors="backslashreplace")
    return page


def _first_cases(scores: Sequence[CaseScore]) -> dict[str, str]:
    """The first case of each structure, to the title of the structure."""
    first: dict[str, str] = {}
    for score in scores:
        first.setdefault(named(score.structure).title, score.case)
    return {case: title for title, case in list(first.items())[:_MOST_PICTURED]}


def _logged(fold: Path) -> dict[str, list[float]]:
    """The values that nnU-Net logged in a training."""
    import torch

    content = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)  # written by this run
    return {key: [float(v) for v in content["logging"][key]] for key in ("train_losses", "val_losses", "mean_fg_dice")}


def findings(summary: Mapping[str, Any], dice: Mapping[str, float]) -> list[str]:
    """Sentences about the results, whatever they are.

    Args:
        summary: content of the pretraining's `ssl_summary.json`.
        dice: method to mean Dice; the first method is compared with the others.
    """
    history = summary["history"]
    first, last = history["val_losses"][0], history["val_losses"][-1]
    error, trivial = history["reconstruction_error"][-1], history["trivial_error"][-1]
    method, *others = dice
    better = [name for name in others if dice[method] > dice[name] + _EQUAL]
    worse = [name for name in others if dice[method] < dice[name] - _EQUAL]
    equal = [name for name in others if name not in better + worse]
    comparisons = {
        f"On unseen patches the fine-tuned model (mean Dice {dice[method]:.3f}) beats": better,
        f"As good to within {_EQUAL}, which so few patches cannot tell apart": equal,
        "It is worse than": worse,
    }
    return [
        f"The pretraining's validation loss {'fell' if last < first else 'did not fall'}: {first:.3f} after the first epoch, {last:.3f} after "
        f"the last ({summary['epochs']} epochs).",
        f"Its error on masked voxels is {error:.3f}, {'below' if error < trivial else 'not below'} that of filling in the mean of what is "
        f"visible nearby ({trivial:.3f}).",
        *(f"{warning[0].upper()}{warning[1:]}." for warning in summary["warnings"]),
        *(
            f"{words}: {', '.join(f'{name} ({dice[name]:.3f})' for name in names)}."
            for words, names in comparisons.items()
            if names
        ),
    ]


def _page(
    summary: Mapping[str, Any],
    means: Sequence[MeanDice],
    evaluations: Mapping[Path, Evaluation],
    commands: Sequence[tuple[str, float]],
    *,
    synthetic: bool,
    brain: Path | None,
) -> str:
    data = (
        "a synthetic download drawn for this run"
        if synthetic
        else "a real download; unseen are the validation cases of fold 0, which neither pretraining nor fine-tuning saw where the download has no unannotated volumes"
    )
    lines = "".join(
        f"<tr><td class=time>{seconds:.0f} s</td><td><code>{html.escape(line)}</code></td></tr>"
        for line, seconds in commands
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>nnunet-selma: demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; border: 1px solid #ddd }} table {{ border-collapse: collapse; margin: .5rem 0 }}
td, th {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }} .name, th:first-child {{ text-align: left }}
.mean td {{ font-weight: 600 }} .best {{ background: #dff0d8 }} .evaluation table {{ font-size: 13px }}
.log td {{ text-align: left }} .time {{ color: #777; white-space: nowrap }} code {{ font-size: 13px }}
</style>
<h1>nnunet-selma: what the demo did</h1>
<p>Data: {data}. Network, patch and run length are small, so that it fits two CPU cores; the numbers say that the path works, not how good
the method is.</p>
{html_list([*findings(summary, means[-1].methods), _CAUTION])}
<h2>Segmentation of unseen patches</h2>
<p>Dice, mean over the cases of a structure.</p>
{html_table(dice_table(means))}
<img src="segmentation.png" alt="raw, truth and prediction with and without pretraining">
<h2>By the rules of SELMA3D</h2>{"".join(_evaluation(path, evaluation) for path, evaluation in evaluations.items())}
{"" if brain is None else _whole_brain(brain)}
<h2>Fine-tuning</h2><img src="finetuning.png" alt="loss and Dice over epochs, with and without pretraining">
<h2>Pretraining by masked inpainting</h2><img src="pretraining.png" alt="pretraining loss over epochs">
<p>What it has taught: how far the weights of each stage have turned from their random start, and the error of the reconstruction when a
map of the encoder is replaced by zeros.</p><img src="learning.png" alt="angle of each stage, error without each map">
<p>The reconstruction sheet, middle slices of validation patches:</p><img src="reconstruction.png" alt="input, masked, output, error">
<h2>Commands</h2><table class="log">{lines}</table>
</html>
"""


def _whole_brain(folder: Path) -> str:
    """The picture and the numbers of a whole brain."""
    objects = read_json(folder / "cells.json")["objects"]
    return (
        f"<h2>A whole brain</h2><p>From TIFF slices, block by block: {objects} objects "
        f'(<a href="{folder.name}/cells.csv">{folder.name}/cells.csv</a>), labels in {folder.name}/brain.ome.zarr.</p>'
        f'<img src="{folder.name}/overview.png" alt="projections along three axes, density and sizes of objects">'
    )


def _evaluation(folder: Path, evaluation: Evaluation) -> str:
    """Tables and pictures of an evaluation, whose folder lies beside the report."""
    name = folder.name
    pictures = "".join(
        f'<img src="{name}/{picture}.png" alt="{picture} of every method">' for picture in ("scores", "ranks")
    )
    sheets = f', a picture of each in <a href="{name}/sheets">{name}/sheets</a>' if (folder / "sheets").is_dir() else ""
    return (
        f"<div class=evaluation>{as_html(evaluation.sections())}{pictures}"
        f'<p>Single cases: <a href="{name}/cases.csv">{name}/cases.csv</a>{sheets}.</p></div>'
    )
