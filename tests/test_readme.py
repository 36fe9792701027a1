"""The commands of the README, the docs and the demo are commands that exist."""

import re
import shlex

import pytest

from nnunet_selma import cli
from nnunet_selma.nnunet import commands
from nnunet_selma.sharing import serve
from tests.conftest import REPOSITORY

LINE = re.compile(
    r"(?:^ {4,}|`|\$\()((?:nnunet-selma|nnUNetv2_\w+|python dataset_conversion/\S+|python -m nnunet_selma\.\S+) [^`\n#)]*)",
    re.MULTILINE,
)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def documented() -> list[str]:
    lines = [match.strip() for page in PAGES for match in LINE.findall(page.read_text(encoding="utf-8"))]
    lines = [line.rstrip('"') if line.count('"') % 2 else line for line in lines]  # of "$(…)"
    # a command in running prose, without arguments, shows no use
    return sorted({line for line in lines if "…" not in line and len(line.split()) > 2})


def test_the_pages_show_the_path():
    shown = " ".join(documented())
    for command in (
        "inspect",
        "convert annotated",
        "convert unannotated",
        "plan-pretraining",
        "nnUNetv2_train 500",
        "nnUNetv2_predict",
        "container",
        "publish",
        "cite",
        "python -m nnunet_selma.sharing.serve",
        "nnUNetv2_export_model_to_zip",
    ):
        assert command in shown


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_can_be_parsed(line):
    program, *arguments = shlex.split(line)
    if arguments[:2] == ["-m", "nnunet_selma.sharing.serve"]:
        serve.command_parser().parse_args(arguments[2:])
    elif program == "python":
        assert (REPOSITORY / arguments[0]).is_file()
    elif program == "nnunet-selma":
        cli.command_parser().parse_args(arguments)
    else:
        assert commands.program(program)


def test_pictures_and_links_of_the_pages_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
