"""Check of a model card: front matter, sections, placeholders, and what it says against config.json.

Other sentences of a card are not compared with anything: a section that holds other numbers than the training's is not noticed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from nnunet_selma.sharing.card import SECTIONS
from nnunet_selma.sharing.markdown import in_cell
from nnunet_selma.sharing.results import in_words

HEADER_KEYS = ("license", "library_name", "pipeline_tag", "tags")
"""Entries of a complete front matter, which hubs read."""
_PLACEHOLDER = re.compile(
    r"\b(?:TODO|TBD|FIXME|XXX)\b|More Information Needed|lorem ipsum|<(?:your|insert|name)\b[^>]*>", re.I
)


def card_problems(card: str, config: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that a card lacks or says wrongly; without the name of the file.

    Args:
        card: the text of README.md.
        config: the content of config.json, whose name, licence, classes, voxel size and folds the card must have; empty if it cannot be read.
    """
    header, body = _parted(card)
    if header is None:
        return [
            "has no front matter that can be read, between two lines ---; hubs need license, library_name, pipeline_tag and tags there"
        ]
    problems = [f"has no {key} in its front matter" for key in HEADER_KEYS if not header.get(key)]
    licence = config.get("license")
    if header.get("license") and licence and str(header["license"]).lower() != licence:
        problems.append(f"says license {header['license']} in its front matter, and config.json says {licence}")
    sections = sections_of(body)
    for title in SECTIONS:
        if title not in sections:
            problems.append(f"has no section {title!r}")
        elif not sections[title].strip():
            problems.append(f"says nothing in its section {title!r}")
    for match in dict.fromkeys(match.group() for match in _PLACEHOLDER.finditer(_without_bibtex(body))):
        problems.append(f"still has a placeholder, {match!r}")
    if config:
        problems += _model_problems(sections.get("Model", ""), config)
        problems += _command_problems(sections.get("How to use it", ""), config)
    return problems


def _model_problems(text: str, config: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each class, and for the voxel size, that config.json has and the section Model has not."""
    for name in config.get("classes") or ():
        if in_cell(name) not in text:
            yield f"does not name the class {name!r} of config.json in its section 'Model'"
    if "spacing_zyx" in config and "spacing_unit" in config:
        size = in_words(config["spacing_zyx"], config["spacing_unit"])
        if size not in text:
            yield f"does not say the voxel size of config.json, {size}, in its section 'Model'"


def _without_bibtex(body: str) -> str:
    return re.sub(r"^```bibtex\n.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)


def sections_of(body: str) -> dict[str, str]:
    """Heading of the second level to the text below it."""
    parts = re.split(r"^## +(.+?) *$", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _parted(card: str) -> tuple[Mapping[str, Any] | None, str]:
    """The front matter, None where it is empty or no YAML, and the text behind it."""
    match = re.match(r"---\n(.*?)\n?---\n(.*)", card, re.DOTALL)
    if match is None:
        return None, card
    try:
        header = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError):  # a date that is none is a ValueError
        return None, match[2]
    return (header if isinstance(header, Mapping) else None), match[2]


def _command_problems(text: str, config: Mapping[str, Any]) -> list[str]:
    """A sentence for each command that names another folder, or other folds, than the model has."""
    name, folds = config.get("name"), [str(fold) for fold in config.get("folds", [])]
    problems = []
    for option in ("-m", "--local-dir"):
        for folder in dict.fromkeys(re.findall(rf"(?<!\S){option} (\S+)", text)):
            if folder != name:
                problems.append(f"has a command with {option} {folder}, and the model is called {name} in config.json")
    if config.get("kind") == "segmentation":
        for chosen in dict.fromkeys(re.findall(r"(?<!\S)-f ((?:all|\d+)(?: \d+)*)", text)):
            if chosen.split() != folds:
                problems.append(f"has a command with -f {chosen}, and the folds are {' '.join(folds)}")
        if "-m " not in text:
            problems.append("has no command that predicts with the folder, -m")
    if "--local-dir " not in text:
        problems.append("has no command that downloads the folder, --local-dir")
    return problems
