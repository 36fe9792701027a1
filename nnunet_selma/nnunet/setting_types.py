"""Field types of settings: the annotation states the allowed values, which are checked when a section is created."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from nnunet_selma.errors import SelmaError


@dataclass(frozen=True)
class Limit:
    """Condition on a value, beside its type."""

    holds: Callable[[Any], bool]
    remedy: str
    """Advice that follows the wrong value in the error."""


Count = Annotated[int, Limit(lambda value: value >= 1, "give at least 1")]
CountOrZero = Annotated[int, Limit(lambda value: value >= 0, "give 0 or more")]
Positive = Annotated[float, Limit(lambda value: value > 0, "give a number above 0")]
PositiveOrZero = Annotated[float, Limit(lambda value: value >= 0, "give 0 or more")]
Share = Annotated[float, Limit(lambda value: 0 < value < 1, "give a share between 0 and 1")]
ShareOrAll = Annotated[float, Limit(lambda value: 0 < value <= 1, "give a factor above 0 and at most 1")]
AnyShare = Annotated[float, Limit(lambda value: 0 <= value <= 1, "give a share from 0 to 1")]
Edges = Annotated[
    tuple[int, ...], Limit(lambda values: min(values, default=0) >= 1, "give one or more edges of at least 1 voxel")
]
Radii = Annotated[tuple[float, ...], Limit(lambda values: min(values, default=0) > 0, "give one or more radii above 0")]


def span(least: float, most: float | None = None) -> Limit:
    """Limit of a lowest and a highest value, which may be equal."""
    return Limit(
        lambda values: len(values) == 2 and least <= values[0] <= values[1] and (most is None or values[1] <= most),
        f"give the lowest and the highest value, from {least:g}{'' if most is None else f' to {most:g}'}",
    )


class Section:
    """Base of the dataclasses of settings; `FooSettings` is the section "foo".

    Raises:
        SelmaError: a value that its field's annotation does not allow.
    """

    def __post_init__(self) -> None:
        """Check every field against its annotation."""
        section = type(self).__name__.removesuffix("Settings").lower()
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]
            check_value(f"{section}.{field.name}", getattr(self, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise `SelmaError`, which names the setting, unless a value has the type and the limits of an annotation."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = next((option for option in options if _fits(value, option)), None)
    if fitting is None:
        raise SelmaError(f"{name} cannot be {json.dumps(value)}; it is {' or '.join(map(_described, options))}")
    if get_origin(fitting) is Literal and value not in get_args(fitting):
        raise SelmaError(f"{name} is {value!r}; choose one of {', '.join(get_args(fitting))}")
    for limit in get_args(fitting)[1:] if get_origin(fitting) is Annotated else ():
        if not limit.holds(value):
            raise SelmaError(f"{name} is {json.dumps(value)}; {limit.remedy}")


def _fits(value: Any, hint: Any) -> bool:
    """True if a value is of a type, whatever its limits."""
    if get_origin(hint) is Annotated:
        return _fits(value, get_args(hint)[0])
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word or a path", NoneType: "null"}
    if get_origin(hint) is Annotated:
        return _described(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return "a list like [4, 8]" if get_origin(hint) is tuple else words[hint]
