import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from nnunet_selma import cli
from nnunet_selma.cli.options import CommandParser, add_options, field_docstrings, settings_from
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.conversion.spacing import Spacing
from nnunet_selma.objects import ObjectSettings
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.structures import SpacingUm


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field of each type that options may have."""

    dataset_id: int
    """Dataset id."""
    share: float = 0.5
    """Share of 100 % of the tiles."""
    mode: Literal["fast", "slow"] = "fast"
    """Mode."""
    folder: Path | None = None
    """Folder; None: the current one."""
    names: tuple[str, ...] = ()
    """OME-Zarr images; empty: all."""
    folds: tuple[int, ...] = (0, 1)
    """Folds."""
    channels: tuple[int, ...] | None = None
    """Channels."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm."""
    spacing: Spacing | None = None
    """Voxel size to write."""
    kind: Literal[6, 26] = 26
    """Neighbours."""
    overwrite: bool = False
    """Replace what is there."""
    hidden: int = 3


OPTIONS = {
    **dict.fromkeys(("share", "mode", "folder", "names", "folds", "channels", "spacing", "kind", "overwrite"), ""),
    "dataset_id": "-d",
    "spacing_um_zyx": "--size ZYX",
}


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_options(parser, Settings, **OPTIONS)
    return parser


def test_without_options_the_fields_have_their_defaults(parser):
    assert settings_from(Settings, parser.parse_args(["-d", "7"])) == Settings(dataset_id=7)


def test_each_type_is_read(parser):
    line = "-d 7 --share 0.25 --mode slow --folder a/b --names x y --folds 2 3 --channels 1 --size 4,2,2 --spacing voxel --kind 6 --overwrite"
    assert settings_from(Settings, parser.parse_args(line.split()), hidden=4) == Settings(
        dataset_id=7,
        share=0.25,
        mode="slow",
        folder=Path("a/b"),
        names=("x", "y"),
        folds=(2, 3),
        channels=(1,),
        spacing_um_zyx=(4.0, 2.0, 2.0),
        spacing="voxel",
        kind=6,
        overwrite=True,
        hidden=4,
    )


@pytest.mark.parametrize("line", ["--mode other", "--kind 8", "--share half", "--size 1,2", "--spacing 1,2"])
def test_another_value_is_refused(parser, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(line.split())
    assert stopped.value.code == 2
    assert line.split()[0] in capsys.readouterr().err


def test_the_help_is_the_docstring_with_its_default(parser):
    shown = " ".join(parser.format_help().split())
    assert "share of 100 % of the tiles (default: 0.5)" in shown
    assert "folder (default: the current one)" in shown
    assert "OME-Zarr images (default: all)" in shown
    assert "folds (default: 0 1)" in shown
    assert "replace what is there" in shown
    assert "--size ZYX" in shown
    assert "channels --size" not in shown
    assert "(default: )" not in shown


def test_a_field_without_docstring_cannot_be_an_option():
    with pytest.raises(KeyError, match="hidden"):
        add_options(argparse.ArgumentParser(), Settings, hidden="")


@pytest.mark.parametrize("settings", [AnnotatedSettings, ObjectSettings, VolumePrediction])
def test_docstrings_are_found_in_the_sources(settings):
    assert field_docstrings(settings).keys() <= {field.name for field in fields(settings)}
    assert len(field_docstrings(settings)) > 5


def test_options_are_added_when_the_command_is_called():
    called = []

    def options(parser):
        called.append(parser.prog)
        parser.add_argument("--size", type=int)

    parser = CommandParser(prog="tool")
    parts = parser.add_subparsers()
    for name in ("first", "second"):
        parts.add_parser(name, options=options)
    assert parser.parse_args(["second", "--size", "3"]).size == 3
    assert called == ["tool second"]
    assert parser.parse_args(["second", "--size", "4"]).size == 4
    assert called == ["tool second"]


def test_every_command_has_a_help(capsys):
    commands = "inspect|splits|convert annotated|convert unannotated|plan-small|plan-network|plan-pretraining|settings|recipe list|recipe show|recipe run"
    commands += "|challenge|export-weights|train-router|predict-routed|remove-small|predict-volume|objects|view|overview|evaluate|propose|round|demo|env"
    for command in commands.split("|"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command.split(), "--help"])
        assert stopped.value.code == 0
        assert f"usage: nnunet-selma {command}" in capsys.readouterr().out
