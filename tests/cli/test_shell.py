"""Terminals of any encoding, names of any bytes, pipes that end, and commands that are stopped."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from nnunet_selma import cli
from nnunet_selma.cli.shell import meter, progress
from tests.cli.test_messages import COMMANDS
from tests.conftest import REPOSITORY, write_image, write_patch

UNDECODABLE = os.fsdecode(b"gr\xfc\xdfe")
NAMES = ["Größe µ × 中文 β", UNDECODABLE]
TERMINALS = {
    "ASCII": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "Latin-1": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    "Windows": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1252"},
}
PROGRAM = """
import sys
from nnunet_selma.cli import main
ends = [place for place, word in enumerate(sys.argv) if word in (sys.argv[0], "THEN")] + [len(sys.argv)]
sys.exit(max(main(sys.argv[start + 1 : end]) for start, end in zip(ends, ends[1:])))
"""
"""One command after another, with THEN between them."""


def run(*words, terminal=None):
    """Commands in another process; their output as bytes."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env={**os.environ, **TERMINALS.get(terminal, {})},
        capture_output=True,
        cwd=REPOSITORY,
        check=False,
    )


def written(name, tmp_path, rng):
    """Annotated patches, slices, a volume and a segmentation below and in a folder of this name."""
    # SimpleITK, with which the patch is written, takes no name that is not UTF-8
    folder = write_patch(tmp_path / "patch", "AD_plaques", 0, rng).rename(tmp_path / name)
    (folder / "annotated").mkdir()
    (folder / "AD_plaques").rename(folder / "annotated" / "AD_plaques")
    slices = folder / "unannotated" / "cell_nucleus" / name
    slices.mkdir(parents=True)
    for z in range(8):
        tifffile.imwrite(slices / f"{name}_Z{z}.tif", rng.integers(1, 65535, (16, 16), dtype=np.uint16))
    tifffile.imwrite(folder / f"{name}.tif", (rng.random((8, 16, 16)) < 0.1).astype(np.uint8))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are always text")
@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("name", NAMES, ids=["letters", "bytes"])
def test_every_terminal_prints_every_name(name, terminal, tmp_path, folders, rng):
    folder = written(name, tmp_path, rng)
    labels = folder / f"{name}.tif"
    done = run(
        *("inspect", folder, "--spacing", "voxel", "THEN", "inspect", folder, "--json", "--spacing", "voxel"),
        *("THEN", "convert", "annotated", folder / "annotated", "--spacing", "voxel"),
        *(
            "THEN",
            "convert",
            "unannotated",
            folder / "unannotated",
            "--spacing",
            "voxel",
            "--tile",
            "8",
            "--workers",
            "1",
        ),
        *("THEN", "objects", labels, "-o", folder / f"{name}.csv", "--spacing", "4,2,2", "--raw", "none"),
        *("THEN", "evaluate", "--edition", "2024", "--structure", "microglia", "--workers", "1"),
        *("--reference", labels, "--prediction", f"x={labels}", "-o", folder / "scores"),
        terminal=terminal,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    done.stdout.decode(TERMINALS[terminal]["PYTHONIOENCODING"])
    manifest = json.loads((folders.raw / "Dataset510_SELMA3D" / "selma_manifest.json").read_text(encoding="utf-8"))
    if name == UNDECODABLE:  # what a file says can be read back as the name of the file
        assert str(folder / "annotated") in json.dumps(manifest, ensure_ascii=False)


def test_letters_that_a_terminal_lacks_have_a_likeness(tmp_path, rng):
    write_image(tmp_path / "microglia" / "a.nii.gz", rng.integers(1, 9, (8, 9, 10), dtype=np.uint16))
    printed = run("inspect", tmp_path, terminal="ASCII").stdout.decode("ascii")
    assert "8x9x10" in printed
    assert "spacing, um (z, y, x)" in printed


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_help_is_printed_on_a_terminal_of_ascii(command, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert f"usage: nnunet-selma {command}" in printed.getvalue().decode("ascii")


def test_the_environment_names_the_folder_as_it_is(tmp_path):
    lines = run("env", tmp_path / "Größe", terminal="ASCII").stdout.splitlines()
    assert lines[0] == b"export nnUNet_raw='" + os.fsencode(tmp_path) + "/Größe/nnUNet_raw'".encode()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are always text")
def test_a_file_that_itk_cannot_open_is_named(tmp_path, folders, rng):
    """ITK would abort the whole process."""
    path = write_image(tmp_path / "in" / "cell_nucleus" / "a.nrrd", rng.integers(1, 9, (8, 9, 10), dtype=np.uint16))
    path.rename(path.with_name(f"{UNDECODABLE}.nrrd"))
    for command, code in ((("inspect",), 1), (("convert", "unannotated"), 2)):
        done = run(*command, tmp_path / "in")
        assert done.returncode == code
        assert b"ITK opens no such file; rename" in done.stdout + done.stderr


@pytest.mark.parametrize("streams", ["stdout", "both"])
@pytest.mark.parametrize("command", [["recipe", "show", "ours"], ["evaluate", "--help"], ["recipe", "show", "none"]])
def test_a_pipe_that_nobody_reads_ends_a_command_in_silence(streams, command, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "stderr").open("wb") as errors:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *command],
            stdout=writer,
            stderr=writer if streams == "both" else errors,
            cwd=REPOSITORY,
            check=False,
        )
    os.close(writer)
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert "Broken" not in said
    assert "Traceback" not in said
    assert done.returncode in (0, 2, 141)


def test_progress_through_nothing_shows_nothing(capsys):
    assert list(progress([], "patches")) == []
    with meter(0, "predicting", "voxel") as step:
        step(0, "done")
    assert capsys.readouterr().err == ""
    assert list(progress([1, 2], "patches")) == [1, 2]
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory (Unable to allocate 9 TiB); make some free"),
        (MemoryError(), "not enough memory; make some free"),
        (UnicodeEncodeError("ascii", "grün", 2, 3, "no"), "grün: files of this name cannot be"),
        (IsADirectoryError(21, "Is a directory", "a.csv"), "a.csv: Is a directory; check the path"),
    ],
)
def test_an_error_of_the_machine_is_a_sentence(error, sentence, monkeypatch, tmp_path, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("nnunet_selma.cli.convert.inspect", fail)
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_an_empty_path_is_refused(capsys):
    """It comes from a variable that is not set, and would be the current folder."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", ""])
    assert stopped.value.code == 2
    assert "the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize("prediction", ["", "x="])
def test_an_empty_path_of_a_method_is_refused(prediction, capsys):
    assert cli.main(["evaluate", "--edition", "2024", "--reference", "x", "--prediction", prediction]) == 2
    assert "the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["{0}/", "{0}/../{1}", "./{1}", "~/{1}"])
def test_every_way_to_write_a_path_is_understood(place, tmp_path, rng, monkeypatch, capsys):
    write_image(tmp_path / "my brains" / "microglia" / "a.nii.gz", rng.integers(1, 9, (8, 9, 10), dtype=np.uint16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["inspect", place.format(tmp_path / "my brains", "my brains"), "--spacing", "voxel"]) == 0
    assert "0 problems, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "env FILE",
        "convert annotated FILE",
        "evaluate --edition 2024 --structure microglia --workers 1 --reference LABEL --prediction LABEL -o FILE",
        "overview LABEL --spacing 4,2,2 -o FOLDER",
        "objects LABEL --spacing 4,2,2 --raw none -o FOLDER.csv",
        "objects LABEL --spacing 4,2,2 --raw none -o .",
        "remove-small FOLDER -o FILE",
        "demo -o FILE",
        "challenge -o FILE",
    ],
)
def test_a_file_in_place_of_a_folder_is_a_sentence(command, tmp_path, folders, capsys, rng):
    (tmp_path / "FILE").write_text("mine", encoding="utf-8")
    (tmp_path / "FOLDER.csv").mkdir()
    write_image(tmp_path / "FOLDER" / "a.nii.gz", (rng.random((8, 9, 10)) < 0.2).astype(np.uint8))
    places = {"FILE": "FILE", "LABEL": "FOLDER/a.nii.gz", "FOLDER": "FOLDER", "FOLDER.csv": "FOLDER.csv"}
    words = [str(tmp_path / places[word]) if word in places else word for word in command.split()]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "nnunet-selma: " in err
    assert (tmp_path / "FILE").read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.rglob("*.partial"))
