"""The demo's report: what was trained, what it segments, and how well, from the files the runs left."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.finetuning.pretrained import SUMMARY
from nnunet_selma.pictures import figures
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import of_case
from nnunet_selma.volumes import open_volume

_SHOWN = 6
_EQUAL = 0.02


@dataclass(frozen=True)
class Comparison:
    """Segmentations of the same unseen patches."""

    images: Path
    """Folder of `<case>_0000.nii.gz`."""
    references: Path
    """Folder of `<case>.nii.gz`."""
    predictions: Mapping[str, Path]
    """Name of a method to its folder of `<case>.nii.gz`; the first two are shown in the picture."""

    evaluations: Mapping[int, Path]
    """Edition to what `nnunet-selma evaluate` wrote for these segmentations."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Case to method to Dice."""
        scores: dict[str, dict[str, float]] = {}
        for case in read_json(next(iter(self.evaluations.values())) / "evaluation.json")["cases"]:
            scores.setdefault(case["case"], {})[case["method"]] = case["official"]["dice"]
        return scores

    def _mask(self, folder: Path, case: str) -> Any:
        return open_volume(folder / f"{case}.nii.gz").read()

    def draw(self, path: Path, cases: Sequence[str]) -> None:
        """The picture of some cases: raw, truth and the first two methods."""
        shown = list(self.predictions.items())[:2]
        rows = []
        for case in cases:
            raw = open_volume(self.images / f"{case}_0000.nii.gz").read()
            rows.append(
                (
                    _title(case),
                    raw,
                    self._mask(self.references, case),
                    {name: self._mask(folder, case) for name, folder in shown},
                )
            )
        figures.segmentation_sheet(path, rows)


def _title(case: str) -> str:
    structure = of_case(case)
    return structure.title if structure else case


def by_structure(scores: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[int, dict[str, float]]]:
    """Structure to (number of cases, method to mean Dice); the last row is the mean over structures."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for case, values in scores.items():
        rows.setdefault(_title(case), []).append(values)
    table = {
        name: (len(cases), {m: float(np.mean([c[m] for c in cases])) for m in cases[0]}) for name, cases in rows.items()
    }
    methods = next(iter(table.values()))[1]
    mean = {m: float(np.mean([values[m] for _, values in table.values()])) for m in methods}
    return {**table, "mean of the structures": (len(scores), mean)}


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
        synthetic: whether the data were drawn; the page says so.
        brain: folder, in this one, with the picture and the objects of a whole brain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = read_json(pretraining / SUMMARY)
    scores = comparison.scores()
    table = by_structure(scores)
    figures.loss_curves(summary["history"], folder / "pretraining.png")
    for picture in ("reconstruction.png", "learning.png"):
        (folder / picture).write_bytes((pretraining / picture).read_bytes())
    figures.training_curves({name: _logged(path) for name, path in finetunings.items()}, folder / "finetuning.png")
    comparison.draw(folder / "segmentation.png", _one_of_each(list(scores)))
    page = folder / "report.html"
    page.write_text(_page(summary, table, comparison, commands, synthetic=synthetic, brain=brain), encoding="utf-8")
    return page


def _one_of_each(cases: Sequence[str]) -> list[str]:
    """The first case of each structure."""
    first: dict[str, str] = {}
    for case in cases:
        first.setdefault(_title(case), case)
    return list(first.values())[:_SHOWN]


def _logged(fold: Path) -> dict[str, list[float]]:
    """Read the values that nnU-Net logged in a training."""
    import torch

    content = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)  # written by this run
    return {key: [float(v) for v in content["logging"][key]] for key in ("train_losses", "val_losses", "mean_fg_dice")}


def findings(summary: Mapping[str, Any], table: Mapping[str, tuple[int, Mapping[str, float]]]) -> list[str]:
    """Sentences about what came out, true whatever came out."""
    history = summary["history"]
    first, last = history["val_losses"][0], history["val_losses"][-1]
    error, trivial = history["reconstruction_error"][-1], history["trivial_error"][-1]
    _, mean = table["mean of the structures"]
    first_method, *others = mean
    better = [name for name in others if mean[first_method] > mean[name] + _EQUAL]
    worse = [name for name in others if mean[first_method] < mean[name] - _EQUAL]
    equal = [name for name in others if name not in better and name not in worse]
    fell = "fell" if last < first else "did not fall"
    below = "below" if error < trivial else "not below"
    sentences = [
        f"The pretraining's validation loss {fell}: {first:.3f} after the first epoch, {last:.3f} after the last ({summary['epochs']} epochs).",
        f"Its error on masked voxels is {error:.3f}, {below} that of filling in the mean of what is visible nearby ({trivial:.3f}).",
        *(f"{warning[0].upper()}{warning[1:]}." for warning in summary["warnings"]),
    ]
    if better:
        sentences.append(
            f"On unseen patches the fine-tuned model (mean Dice {mean[first_method]:.3f}) beats: "
            + ", ".join(f"{n} ({mean[n]:.3f})" for n in better)
            + "."
        )
    for names, word in (
        (equal, f"As good to within {_EQUAL}, which so few patches cannot tell apart"),
        (worse, "It is worse than"),
    ):
        if names:
            sentences.append(f"{word}: {', '.join(f'{n} ({mean[n]:.3f})' for n in names)}.")
    return sentences


def _page(
    summary: Mapping[str, Any],
    table: Mapping[str, tuple[int, Mapping[str, float]]],
    comparison: Comparison,
    commands: Sequence[tuple[str, float]],
    *,
    synthetic: bool,
    brain: Path | None,
) -> str:
    whole = "" if brain is None else _whole_brain(brain)
    judged = "".join(_judged(folder) for folder in comparison.evaluations.values())
    rows = "".join(_row(name, count, values) for name, (count, values) in table.items())
    lines = "".join(
        f"<tr><td class=t>{seconds:.0f} s</td><td><code>{html.escape(line)}</code></td></tr>"
        for line, seconds in commands
    )
    data = (
        "a synthetic download drawn for this run"
        if synthetic
        else "a real download; unseen are the validation cases of fold 0, which neither pretraining nor fine-tuning saw where the download has no unannotated volumes"
    )
    # a second run with another seed moves a mean over so few patches by several hundredths
    caution = "One training each, on a handful of patches: another seed can turn the order of two trained models."
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings(summary, table))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>nnunet-selma: demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; border: 1px solid #ddd }} table {{ border-collapse: collapse; margin: .5rem 0 }}
td, th {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }} td:first-child, th:first-child {{ text-align: left }}
tr:last-child td {{ font-weight: 600 }} .judged td {{ font-weight: 400 }} .judged {{ font-size: 13px }} .best {{ background: #dff0d8 }} .log td {{ text-align: left; font-weight: 400 }} .log .t {{ color: #777; white-space: nowrap }}
code {{ font-size: 13px }}
</style>
<h1>nnunet-selma: what the demo did</h1>
<p>Data: {data}. Network, patch and run length are small, so that it fits two CPU cores; the numbers say that the path works, not how good
the method is.</p>
<ul>{said}<li>{caution}</li></ul>
<h2>Segmentation of unseen patches</h2>
<p>Dice, mean over the cases of a structure.</p>
<table><tr><th>structure</th><th>cases</th>{"".join(f"<th>{html.escape(m)}</th>" for m in comparison.predictions)}</tr>{rows}</table>
<img src="segmentation.png" alt="raw, truth and prediction with and without pretraining">
<h2>By the rules of SELMA3D</h2>{judged}
{whole}
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
    found = read_json(folder / "cells.json")
    return (
        f"<h2>A whole brain</h2><p>From TIFF slices, block by block: {found['objects']} objects "
        f'(<a href="{folder.name}/cells.csv">{folder.name}/cells.csv</a>), labels in {folder.name}/brain.ome.zarr.</p>'
        f'<img src="{folder.name}/overview.png" alt="projections along three axes, density and sizes of objects">'
    )


def _judged(folder: Path) -> str:
    """Convert the page of an evaluation into a part of the report that lies beside its folder."""
    parts = []
    for block in (folder / "tables.md").read_text(encoding="utf-8").split("\n\n"):
        text = html.escape(block.strip())
        if block.startswith("## "):
            parts.append(f"<h3>{text[3:]}</h3>")
        elif block.startswith("|"):
            rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
            lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in [rows[0], *rows[2:]])
            parts.append(f"<table class=judged>{lines}</table>")
        elif block.startswith("- "):
            parts.append(f"<ul>{''.join(f'<li>{line[2:]}</li>' for line in text.splitlines())}</ul>")
        else:
            parts.append(f"<p>{text}</p>")
    name = folder.name
    parts += [f'<img src="{name}/{picture}.png" alt="{picture} of every method">' for picture in ("scores", "ranks")]
    sheets = f', a picture of each in <a href="{name}/sheets">{name}/sheets</a>' if (folder / "sheets").is_dir() else ""
    return f'{"".join(parts)}<p>Single cases: <a href="{name}/cases.csv">{name}/cases.csv</a>{sheets}.</p>'


def _row(name: str, count: int, values: Mapping[str, float]) -> str:
    best = max(values.values())
    cells = "".join(f"<td{' class=best' if value == best else ''}>{value:.3f}</td>" for value in values.values())
    return f"<tr><td>{html.escape(name)}</td><td>{count}</td>{cells}</tr>"
