"""`nnunet-selma publish`."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import FOLDER_VARIABLES, Folders


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "publish",
        options=_options,
        help="write a trained model as a repository for a hub, with licence and model card; or check such a folder",
    )


_DEFAULTS = (None, (), False, "checkpoint_final.pth")
"""Values of options that were not given."""
_NOT_OF_A_PACKAGE = {"--description": "description", "--repository": "repository"}
_NOT_OF_A_CHECK = {
    "RESULTS": "results",
    "-o": "output",
    "--license": "license",
    "--name": "name",
    "--author": "author",
    **_NOT_OF_A_PACKAGE,
    "--evaluation": "evaluation",
    "--method": "method",
    "-f": "folds",
    "-chk": "checkpoint",
    "--bioimageio": "bioimageio",
    "--bioimageio-python": "bioimageio_python",
}


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.sharing.publish import PublishSettings

    parser.add_argument(
        "results", type=path, nargs="?", help="results folder: the one that holds plans.json and the fold folders"
    )
    parser.add_argument("-o", dest="output", type=path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--check", type=path, metavar="DIR", help="check a published folder instead; exits with 1 if something is wrong"
    )
    add_options(parser, PublishSettings, license=" SPDX", name="", author="", description=" TEXT")
    add_options(parser, PublishSettings, repository=" ACCOUNT/NAME", evaluation="", method="")
    parser.add_argument(
        "-f", "--fold", dest="folds", nargs="+", default=(), help="folds, or all (default: those that are trained)"
    )
    add_options(parser, PublishSettings, checkpoint="-chk")
    parser.add_argument(
        "--bioimageio",
        action="store_true",
        help="write a package for bioimage.io instead: a folder, or a file that ends in .zip; one fold",
    )
    parser.add_argument(
        "--bioimageio-python",
        type=path,
        metavar="FILE",
        help="interpreter with bioimageio.core and nnunetv2, which tests the package (default: this one)",
    )
    parser.set_defaults(run=_publish, starts_anew=True)


def _publish(chosen: argparse.Namespace) -> int:
    from nnunet_selma.sharing.publish import PublishSettings, licence_warning, publish

    if chosen.check is not None:
        _refuse(chosen, _NOT_OF_A_CHECK, "--check takes a published folder alone")
        return _check(chosen.check)
    if chosen.results is None or chosen.output is None:
        raise SelmaError("give the results folder and -o DIR, or --check DIR to check a published folder")
    if chosen.license is None:
        raise SelmaError("give the licence of the weights with --license, as in --license cc-by-nc-4.0")
    if chosen.method is not None and chosen.evaluation is None:
        raise SelmaError(f"--method {chosen.method}: is a method of an evaluation; give that with --evaluation")
    if chosen.bioimageio:
        _refuse(chosen, _NOT_OF_A_PACKAGE, "a package for bioimage.io has no place for it")
        return _package(chosen)
    _refuse(chosen, {"--bioimageio-python": "bioimageio_python"}, "tests a package, which only --bioimageio writes")
    facts = publish(chosen.results, chosen.output, settings_from(PublishSettings, chosen), _folders())
    size = sum(file.stat().st_size for file in chosen.output.rglob("*") if file.is_file())
    print(f"{chosen.output}: {facts.kind}, fold {', '.join(fold.fold for fold in facts.folds)}, {size / 1e6:.1f} MB")
    if warning := licence_warning(facts, chosen.license):
        print(f"WARNING: {warning}")
    code = _check(chosen.output)
    print(f"read {chosen.output / 'README.md'}, then: hf upload {chosen.repository or 'ACCOUNT/NAME'} {chosen.output}")
    return code


def _refuse(chosen: argparse.Namespace, options: Mapping[str, str], why: str) -> None:
    """Raise `SelmaError` if one of these options was given, which would be dropped."""
    if given := [option for option, name in options.items() if getattr(chosen, name) not in _DEFAULTS]:
        raise SelmaError(f"{', '.join(given)}: {why}; leave {'it' if len(given) == 1 else 'them'} out")


def _package(chosen: argparse.Namespace) -> int:
    """Write a package for bioimage.io."""
    from nnunet_selma.sharing.bioimageio import LIMITS, PackageSettings, write_package
    from nnunet_selma.sharing.card_validation import validation_lines
    from nnunet_selma.sharing.licences import licence_named
    from nnunet_selma.sharing.publish import licence_warning
    from nnunet_selma.sharing.results import facts_of
    from nnunet_selma.sharing.validation import read_validation

    facts = facts_of(chosen.results, folds=tuple(chosen.folds), checkpoint=chosen.checkpoint, folders=_folders())
    validation = read_validation(chosen.evaluation, chosen.method, facts) if chosen.evaluation else None
    settings = PackageSettings(
        name=chosen.name,
        authors=(chosen.author,) if chosen.author else (),
        license=licence_named(chosen.license).spdx,
        validation="\n".join(validation_lines(facts, validation)),
    )
    python = chosen.bioimageio_python or Path(sys.executable)
    versions = write_package(facts, chosen.output, settings, python=python)
    tested = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"{chosen.output}: passed test_model with {tested}")
    for limit in LIMITS:
        print(f"not expressed: {limit}")
    if warning := licence_warning(facts, chosen.license):
        print(f"WARNING: {warning}")
    return 0


def _folders() -> Folders | None:
    """nnU-Net's folders, if the environment names them."""
    return Folders.from_environment(os.environ) if all(os.environ.get(name) for name in FOLDER_VARIABLES) else None


def _check(folder: Path) -> int:
    from nnunet_selma.sharing.checking import problems_of

    problems = problems_of(folder)
    for problem in problems:
        print(problem)
    print(
        f"{folder}: {counted(len(problems), 'problem') if problems else 'complete; it loads, and the card is filled'}"
    )
    return 1 if problems else 0
