"""`nnunet-selma …`: reads arguments and environment, calls the library, prints. One module a group of commands."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_selma import __version__
from nnunet_selma.cli import (
    cite,
    container,
    convert,
    evaluate,
    objects,
    plan,
    predict,
    predict_volume,
    propose,
    publish,
    recipe,
    see,
    weights,
)
from nnunet_selma.cli import round as round_
from nnunet_selma.cli.arguments import device_argument, path
from nnunet_selma.cli.options import CommandParser
from nnunet_selma.cli.shell import complain, computing_device, discard_output, show_every_character
from nnunet_selma.errors import SelmaError, sentence_of
from nnunet_selma.nnunet import commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: done; 1: inspect or publish --check found problems; 2: it could not be done; 130: interrupted; 141: nobody reads its output any more, as in
    `nnunet-selma inspect … | head -1`.
    """
    show_every_character()
    try:
        try:
            return _run(command_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not in a traceback at the end of Python
    except BrokenPipeError:
        discard_output()
        return 141


def _run(chosen: argparse.Namespace) -> int:
    """Run the chosen command; returns the exit code, and prints a sentence instead of a traceback."""
    try:
        code: int = chosen.run(chosen)
    except SelmaError as error:
        complain(error.for_command(chosen.known_options))
        return 2
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        complain(f"{error.object}: files of this name cannot be read or written here; rename the file or its folder")
        return 2
    except (OSError, MemoryError) as error:
        complain(sentence_of(error).for_command(chosen.known_options))
        return 2
    except KeyboardInterrupt:
        complain(_stopped(chosen))
        return 130
    return code


def _stopped(chosen: argparse.Namespace) -> str:
    """Tell a user who interrupted a command whether the same command goes on or starts again."""
    if getattr(chosen, "starts_anew", False):
        return "stopped; the same command starts from the beginning"
    if getattr(chosen, "output", True) is None:  # evaluate without -o keeps nothing
        return "stopped; give -o FOLDER to go on from there"
    return "stopped; the same command goes on from here"


def _env(chosen: argparse.Namespace) -> int:
    for name, value in commands.workspace_environment(chosen.root).items():
        # the shell needs the name of the folder as it is, whatever the encoding of the terminal
        sys.stdout.buffer.write(os.fsencode(f"export {name}={shlex.quote(value)}\n"))
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from nnunet_selma.demo.demo import run_demo

    device = computing_device(chosen.device)
    report = run_demo(
        chosen.output,
        data=chosen.data,
        device=device.type,
        seed=chosen.seed,
        say=lambda line: print(line, flush=True),
    )
    print(f"open {report}")
    return 0


def command_parser() -> CommandParser:
    """The parser of all commands."""
    parser = CommandParser(prog="nnunet-selma", description="Self-supervised nnU-Net for light-sheet microscopy.")
    parser.add_argument("--version", action="version", version=__version__)
    parts = parser.add_subparsers(required=True, metavar="command")

    env = parts.add_parser("env", help='print the environment of a workspace: eval "$(nnunet-selma env ~/selma)"')
    env.add_argument("root", type=path, help="folder for nnU-Net's raw, preprocessed and result folders")
    env.set_defaults(run=_env)

    groups = (
        *(convert, plan, recipe, weights, predict, predict_volume, objects, see, evaluate),
        *(propose, round_, container, publish, cite),
    )
    for group in groups:
        group.add_to(parts)

    demo = parts.add_parser(
        "demo", help="run everything on a synthetic brain, with the real commands, and write a report"
    )
    demo.add_argument(
        "-o", dest="output", type=path, default=Path("demo"), help="folder for everything (default: %(default)s)"
    )
    demo.add_argument("--data", type=path, help="a real download instead of the synthetic one")
    device_argument(demo)
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    return parser
