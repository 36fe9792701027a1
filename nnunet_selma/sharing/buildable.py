"""Check of plans from others before nnU-Net builds a network from them: nnU-Net calls whatever class or function they name."""

import pydoc
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_PACKAGES = ("dynamic_network_architectures.", "nnunet_selma.", "torch.nn.")
"""Packages of networks and layers."""


def plan_problems(plans: Mapping[str, Any]) -> Iterator[str]:
    """A sentence, without the name of the file, for each reason not to build a network from plans; classes are imported, not called.

    Args:
        plans: the content of plans.json, whose configurations are dictionaries.
    """
    configurations = plans["configurations"]
    for name, configuration in configurations.items():
        line = [name]
        while (parent := configurations[line[-1]].get("inherits_from")) is not None:
            if not isinstance(parent, str) or parent not in configurations or parent in line:
                yield f"its configuration {name} inherits from {parent}, which is lacking or inherits from itself"
                break
            line.append(parent)
        else:
            if not any("architecture" in configurations[each] for each in line):
                yield f"its configuration {name} does not describe a network; publish anew"
        if "architecture" in configuration:
            yield from _architecture_problems(name, configuration["architecture"])


def _architecture_problems(name: str, architecture: Any) -> Iterator[str]:
    """Faults of the network of one configuration."""
    try:
        arguments, imported = architecture["arch_kwargs"], architecture["_kw_requires_import"]
        classes = [architecture["network_class_name"], *(arguments[each] for each in imported)]
    except (KeyError, TypeError):
        yield f"its configuration {name} does not describe a network; publish anew"
        return
    for each in classes:
        if each is not None and not _is_layer(each):
            yield (
                f"names {each!s:.80}, which is no network or layer of dynamic_network_architectures, nnunet_selma or torch.nn that is installed; "
                "nothing is built with it"
            )


def _is_layer(name: Any) -> bool:
    """True for the name of a class of PyTorch modules that is defined in one of the packages.

    The class is looked at, since a name can reach any function through the imports of a module, as in torch.nn.functional.torch.hub.load.
    """
    if not isinstance(name, str) or not name.startswith(_PACKAGES):
        return False
    try:
        layer = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    return isinstance(layer, type) and issubclass(layer, nn.Module) and f"{layer.__module__}.".startswith(_PACKAGES)
