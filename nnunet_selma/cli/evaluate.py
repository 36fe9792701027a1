"""`nnunet-selma evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path, workers_argument
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import progress
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import stem


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "evaluate",
        options=_options,
        help="score predictions by the rules of a SELMA3D edition: tables and pictures",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.evaluation import EvaluationSettings
    from nnunet_selma.evaluation.metrics.extras import Extras

    parser.add_argument(
        "--reference", type=path, required=True, metavar="PATH", help="folder of ground truths, or one file"
    )
    parser.add_argument(
        "--prediction",
        required=True,
        nargs="+",
        metavar="[NAME=]PATH",
        help="folder of predictions, or one file; several are ranked. NAME stands in the tables (default: the folder's name)",
    )
    parser.add_argument(
        "--edition", dest="year", type=int, required=True, metavar="2024|2026", help="edition whose rules count"
    )
    add_options(
        parser,
        EvaluationSettings,
        corrected="",
        structure="",
        kind="",
        foreground=" VALUE",
        per_class="",
        spacing_um_zyx="--spacing",
    )
    parser.add_argument("-o", dest="output", type=path, help="folder for tables and pictures (default: print only)")
    parser.add_argument(
        "--against",
        metavar="NAME|[NAME=]PATH",
        help="compare case by case with this method: interval and Wilcoxon test",
    )
    parser.add_argument("--images", type=path, metavar="PATH", help="folder of raw images, shown in the pictures")
    missing = parser.add_mutually_exclusive_group()
    missing.add_argument(
        "--allow-missing",
        dest="missing",
        action="store_const",
        const="empty",
        default="error",
        help="score a case that one side lacks as empty, instead of stopping",
    )
    missing.add_argument(
        "--leave-out-missing",
        dest="missing",
        action="store_const",
        const="leave out",
        help="score only the cases that both sides have",
    )
    parser.add_argument("--no-sheets", dest="sheets", action="store_false", help="draw no picture of each case")
    workers_argument(parser, "each holds one case")
    more = parser.add_argument_group("beyond the official metrics")
    more.add_argument(
        "--objects",
        metavar="RULE",
        help="precision, recall, F1 and count error of objects that match by iou:0.3, overlap, or distance:10 (µm between centres)",
    )
    add_options(more, Extras, hd95="", size="")
    parser.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> int:
    from nnunet_selma.evaluation import EvaluationSettings, evaluate, write_evaluation
    from nnunet_selma.evaluation.metrics.extras import Extras
    from nnunet_selma.evaluation.metrics.matching import MatchingRule

    rule = MatchingRule.parse(chosen.objects) if chosen.objects else None
    if chosen.images and not (chosen.output and chosen.sheets):
        raise SelmaError("--images is for the pictures of the cases: give -o FOLDER, and no --no-sheets")
    methods = _methods(chosen.prediction)
    other = _other(chosen.against, methods) if chosen.against else None
    settings = settings_from(
        EvaluationSettings, chosen, extras=settings_from(Extras, chosen, objects=rule), against=other
    )
    evaluation = evaluate(
        chosen.reference,
        methods,
        settings,
        output=chosen.output,
        images=chosen.images,
        sheets=chosen.sheets,
        workers=chosen.workers,
        progress=progress,
    )
    print(evaluation.markdown())
    if chosen.output:
        write_evaluation(evaluation, chosen.output)
        print(f"tables and pictures: {chosen.output}")
    return 0


def _other(text: str, methods: dict[str, Path]) -> str:
    """Name of the method to compare with, in `methods`; a path that is not there is added."""
    if text in methods:
        return text
    ((name, folder),) = _methods([text]).items()
    known = [name for name, place in methods.items() if place.resolve() == folder.resolve()]
    if known:
        return known[0]
    if name in methods:
        raise SelmaError(f"two methods are called {name}: name them, as in --against baseline={folder}")
    methods[name] = folder
    return name


def _methods(texts: list[str]) -> dict[str, Path]:
    """Name of each method to its folder."""
    methods: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not text or (equals and not folder):
            raise SelmaError(f"--prediction {text!r}: the path is empty; give a folder of predictions, or one file")
        if not equals or path(text).exists():
            name, folder = stem(path(text).resolve()), text
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise SelmaError(f"{text}: before = stands the name of the method, without a slash; it becomes a folder")
        if not name.isprintable():
            raise SelmaError(
                f"{text}: the name cannot be printed; give the method another, as in --prediction first={folder}"
            )
        if name in methods:
            raise SelmaError(
                f"two methods are called {name}: name them, as in --prediction first={methods[name]} second={folder}"
            )
        methods[name] = path(folder)
    return methods
