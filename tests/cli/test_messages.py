"""Messages name no option that the command lacks which may print them.

The messages of a command are read from the sources: those in every function and class that its function mentions, and in what these
mention in turn. That is more than the command can reach, so some messages are excepted, each with a reason.
"""

import argparse
import ast
import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import nnunetv2
import pytest

from nnunet_selma.cli import command_parser
from nnunet_selma.errors import OPTION
from tests.test_rooms import MODULES

TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
RUNS_OTHERS = {"demo", "challenge", "recipe run", "recipe list", "recipe show"}
"""Commands that print and run the lines of others, or print what a paper says."""
EXCEPTED = {
    "nnunet_selma.running.cluster": "raised only where --scheduler was given",
    "nnunet_selma.conversion.spacing": "inspect asks only for the spacing of structures that have one",
    "nnunet_selma.conversion.channels": "inspect keeps channels separate",
    "nnunet_selma.sharing.card": "writes a model card, which shows commands of several programs",
    "nnunet_selma.sharing.card_check": "reads the commands of a model card",
    "nnunet_selma.sharing.card_commands": "writes the commands of a model card",
    "nnunet_selma.prediction.model": "container loads models on the CPU, which has no --device to choose",
    "nnunet_selma.sharing.docker_files": "files with commands of Docker and pip",
}
"""Module to the reason why no command prints its messages without having the options."""


def commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Each command to its parser, with its options."""
    with pytest.raises(SystemExit), redirect_stdout(StringIO()):
        parser.parse_known_args(["--help"])  # which adds the options
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return {name: parser}
    return {
        key: value
        for group in groups
        for part, below in group.choices.items()
        for key, value in commands(below, f"{name} {part}".strip()).items()
    }


COMMANDS = commands(command_parser())
OPTIONS = {name: set(parser._option_string_actions) for name, parser in COMMANDS.items()}


@cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Each name that a module defines to the statement that does it."""
    named = {}
    for statement in TREES[module].body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            named[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            named |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
    return named


@cache
def imported(module: str) -> dict[str, tuple[str, str]]:
    """Each name that a module imports from the package to the module and the name there; the name of a module is empty."""
    names = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = (full, "") if full in MODULES else (node.module, alias.name)
    return names


def mentioned(module: str, node: ast.AST) -> set[tuple[str, str]]:
    """Module and name of everything in the package that a piece of code mentions."""
    there = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            there.add(imported(module).get(part.id, (module, part.id)))
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            there.add((imported(module).get(part.value.id, ("", ""))[0], part.attr))
    return {(where, name) for where, name in there if where in MODULES and name}


@cache
def reached(module: str, name: str) -> dict[tuple[str, str], ast.stmt]:
    """Everything that a function mentions, and that these mention in turn."""
    open_ends, seen = [(module, name)], {}
    while open_ends:
        where, name = open_ends.pop()
        if (where, name) in seen:
            continue
        if name in definitions(where):
            seen[where, name] = definitions(where)[name]
            open_ends += mentioned(where, seen[where, name])
        elif name in imported(where):  # handed on by an __init__
            open_ends.append(imported(where)[name])
    return seen


def sentences(statement: ast.stmt) -> list[tuple[int, str]]:
    """Line and text of the strings of a piece of code, without docstrings; values within a text are "…"."""
    texts: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.keyword) and node.arg == "option":
            return  # a further remedy, which only commands that have its option print
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            texts.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append((node.lineno, node.value))
        else:
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(statement)
    return texts


NNUNET = {
    option
    for path in Path(nnunetv2.__path__[0]).rglob("*.py")
    for call in re.findall(r"add_argument\(([^)]*)", path.read_text(encoding="utf-8"))
    for option in re.findall(r"['\"](--?[A-Za-z]\w*)['\"]", call)
}
"""Options of nnU-Net's commands."""


OTHER_PROGRAMS = {
    "nnunet_selma.sharing.card": {"-am"},
    "nnunet_selma.sharing.card_check": {"--local-dir"},
    "nnunet_selma.sharing.card_commands": {"-r", "--local-dir", "-n", "-pc", "-am"},
}
"""Module to the options of cp, of the hub's hf, and of nnU-Net's development version, which its text shows."""


def of_others(text: str) -> set[str]:
    """Options of the commands that a text names."""
    named = [options for command, options in OPTIONS.items() if f"nnunet-selma {command.split()[0]}" in text]
    return set().union(*named, NNUNET if re.search(r"nnUNetv2_|-tr SelmaSSL", text) else ())


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - RUNS_OTHERS))
def test_messages_name_options_that_the_command_has(command):
    run = COMMANDS[command].get_default("run")
    lacking = [
        f"{module}:{line}: {option} in {text!r}"
        for (module, _), statement in reached(run.__module__, run.__name__).items()
        if module not in EXCEPTED
        for line, text in sentences(statement)
        if " " in text  # a word alone is part of a command line
        for option in OPTION.findall(text)
        if option not in OPTIONS[command] | of_others(text)
    ]
    assert lacking == []


@pytest.mark.parametrize("module", sorted(TREES.keys() - {"nnunet_selma.sharing.docker_files"}))
def test_options_in_messages_exist(module):
    known = set().union(NNUNET, *OPTIONS.values(), ("-like", "-scratch"), OTHER_PROGRAMS.get(module, ()))
    texts = [text for statement in definitions(module).values() for _, text in sentences(statement) if " " in text]
    assert {option for text in texts for option in OPTION.findall(text)} <= known


def test_what_a_command_reaches_is_found():
    """Otherwise the tests above would hold of nothing."""
    run = COMMANDS["evaluate"].get_default("run")
    assert ("nnunet_selma.volumes.tiff", "TiffSlices") in reached(run.__module__, run.__name__)
