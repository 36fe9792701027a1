"""`nnunet-selma cite`."""

import argparse
import textwrap
from typing import Any

from nnunet_selma.cli.arguments import path


def _cite(chosen: argparse.Namespace) -> int:
    from nnunet_selma.sharing.cite import citations, open_points
    from nnunet_selma.sharing.results import facts_of

    facts = facts_of(chosen.results, folds=chosen.folds, checkpoint=chosen.checkpoint)
    for citation in citations(facts):
        reason = textwrap.fill(citation.reason, 100)
        if chosen.bibtex:
            print(textwrap.indent(reason, "% "), citation.bibtex, sep="\n", end="\n\n")
        else:
            print(citation.sentence, textwrap.indent(reason, "    "), sep="\n", end="\n\n")
    for point in open_points(facts):
        print(f"{'% ' if chosen.bibtex else ''}{point}")
    return 0


def add_to(parts: Any) -> None:
    """Add the command."""
    cite = parts.add_parser("cite", help="print what a paper must cite for a trained model, and why")
    cite.add_argument(
        "results", type=path, metavar="RESULTS", help="trained model: the folder with plans.json and the fold folders"
    )
    cite.add_argument(
        "-f", "--fold", dest="folds", nargs="+", default=(), help="folds, or all (default: those that are trained)"
    )
    cite.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        metavar="NAME",
        help="file of the weights in the folder of a fold (default: %(default)s)",
    )
    cite.add_argument("--bibtex", action="store_true", help="as BibTeX")
    cite.set_defaults(run=_cite)
