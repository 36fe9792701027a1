"""Options generated from the fields of a settings dataclass: its types, its defaults, and its field docstrings as help."""

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nnunet_selma.cli.arguments import path, spacing, voxel_size
from nnunet_selma.conversion.spacing import Spacing
from nnunet_selma.structures import SpacingUm

Settings = TypeVar("Settings")
_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "N"),
    float: (float, "X"),
    str: (str, "NAME"),
    Path: (path, "PATH"),
    SpacingUm: (voxel_size, "Z,Y,X"),
    Spacing: (spacing, "header|physical|voxel|Z,Y,X"),
}
"""Type of a field to the function that reads it, and the word that stands for its value in the help."""
_UNSET = re.compile(r"[;.] (?:None|empty): (?P<default>.+?)\.?$")


class CommandParser(argparse.ArgumentParser):
    """Parser of a command whose options are added when it is called, so that no command waits for the imports of another.

    The parsed arguments hold the options of the command that was called, as `known_options`.
    """

    def __init__(self, *args: Any, options: Callable[[Any], None] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._add_options = options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the options and parse, as argparse does when the command is called."""
        if self._add_options is not None:
            self._add_options(self)
            self._add_options = None
        namespace, rest = super().parse_known_args(args, namespace)
        if "known_options" not in namespace:  # the parser of the innermost command returns first
            namespace.known_options = frozenset(self._option_string_actions)
        return namespace, rest


def add_options(parser: Any, settings: type, *, only_given: Collection[str] = (), **flags: str) -> None:
    """Add an option for each of these fields of a dataclass.

    Args:
        parser: parser or group of argparse.
        settings: the dataclass. A field's docstring may end in "None: …" or "empty: …", which says what its default means.
        only_given: fields that the parsed arguments lack unless their option is given.
        flags: field to its option, and a word for its value if the type says too little, as in `block="--block VOXELS"`; without an
            option it is "--" and the name of the field.
    """
    hints, texts = get_type_hints(settings), field_docstrings(settings)
    by_name = {field.name: field for field in fields(settings)}
    for name, flag in flags.items():
        option, _, metavar = flag.partition(" ")
        described = _description(by_name[name], hints[name], texts[name]) | ({"metavar": metavar} if metavar else {})
        described |= {"default": argparse.SUPPRESS} if name in only_given else {}
        parser.add_argument(option or f"--{name.replace('_', '-')}", dest=name, **described)


def settings_from(settings: Callable[..., Settings], chosen: argparse.Namespace, **given: Any) -> Settings:
    """The dataclass with the values of its options; `given` are fields without an option."""
    options = {field.name for field in fields(settings)} & vars(chosen).keys() - given.keys()  # type: ignore[arg-type]
    values = {name: getattr(chosen, name) for name in options}
    return settings(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}, **given
    )


def field_docstrings(settings: type) -> dict[str, str]:
    """Each field of a dataclass to the string literal below it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[ast.unparse(field.target)] = str(text.value.value)
    return texts


def _description(field: "Field[Any]", hint: Any, text: str) -> dict[str, Any]:
    """Arguments of `add_argument` for a field."""
    unset = _UNSET.search(text)
    text = text[: unset.start()] if unset else text.rstrip(".")
    text = (text if text[1:2].isupper() else text[0].lower() + text[1:]).replace("%", "%%")
    if hint is bool:
        return {"action": "store_true", "help": text}
    if field.default_factory is not MISSING:
        return {**_reading(hint), "default": argparse.SUPPRESS, "help": text}
    default = None if field.default is MISSING else field.default
    values = default if isinstance(default, tuple) else () if default is None else (default,)
    meaning = unset["default"] if unset else " ".join(map(str, values))
    return {**_reading(hint), "default": default, "help": f"{text} (default: {meaning})" if meaning else text}


def _reading(hint: Any) -> dict[str, Any]:
    """Arguments of `add_argument` by which the text of an option becomes a value of this type."""
    if NoneType in get_args(hint):
        hint = Union[tuple(kind for kind in get_args(hint) if kind is not NoneType)]  # noqa: UP007
    if hint in _READERS:
        reader, metavar = _READERS[hint]
        return {"type": reader, "metavar": metavar}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint), "type": type(get_args(hint)[0])}
    item, _ = get_args(hint)  # tuple[item, ...]
    return {**_reading(item), "nargs": "+"}
