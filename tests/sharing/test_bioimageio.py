"""Packages for bioimage.io: complete, of no machine, and with the output that nnU-Net predicts."""

import json
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.sharing.bioimageio import LIMITS, PackageSettings, check_package, write_files, write_package
from nnunet_selma.sharing.licences import SELMA3D_QUESTION
from nnunet_selma.sharing.results import DataFacts, facts_of
from tests.conftest import REPOSITORY
from tests.plans import plans
from tests.prediction.models import stock, write_model

NAMED = PackageSettings(name="Small test model", authors=("A. Person",), license="CC-BY-NC-4.0")


def small(*, spacing=(4.0, 1.5, 1.6), patch=(8, 16, 24), transpose=(0, 1, 2), scheme="ZScoreNormalization"):
    """Plans with each axis of another length, and the voxel size along the axes of the network."""
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(patch), "spacing": list(spacing), "normalization_schemes": [scheme]}
    content["transpose_forward"] = list(transpose)
    content["transpose_backward"] = [transpose.index(axis) for axis in range(3)]
    content["original_median_spacing_after_transp"] = list(spacing)
    return content


def packaged(folder, content, **model):
    settings = write_model(folder / "Dataset510_A" / "SelmaFinetuneTrainer__nnUNetPlans__3d_fullres", content, **model)
    facts = facts_of(settings.folder)
    write_files(facts, folder / "package", NAMED)
    return settings, folder / "package", json.loads((folder / "package" / "rdf.yaml").read_text())


REGIONS = {"labels": {"background": 0, "cell": [1, 2], "core": 2}, "regions_order": [1, 2]}
THREE = {"labels": {"background": 0, "vessel": 2, "cell": 1}}


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (small(), {}),
        (small(transpose=(1, 0, 2)), {"channels": 2}),
        (small(scheme="RescaleTo01Normalization"), THREE),
        (small(scheme="NoNormalization"), REGIONS),
    ],
    ids=["plain", "transposed, two channels", "three classes", "regions"],
)
def test_the_test_output_is_what_nnunet_predicts(content, more, tmp_path):
    """A patch of the planned voxel size is one tile, neither resampled nor averaged; nnU-Net's half precision loses its border."""
    settings, package, _ = packaged(tmp_path, content, **more)
    image = np.load(package / "test_input.npy")[0]
    back = [0, *(1 + axis for axis in content["transpose_backward"])]
    spacing = [content["configurations"]["3d_fullres"]["spacing"][axis] for axis in content["transpose_backward"]]
    _, probabilities = stock(settings, image.transpose(back), spacing, probabilities=True)
    output = np.load(package / "test_output.npy")[0].transpose(back)
    middle = (slice(None), *(slice(length // 4, -(length // 4)) for length in output.shape[1:]))
    assert output.std() > 0.02
    np.testing.assert_allclose(output[middle], probabilities[middle], atol=5e-3)


def test_the_description_says_axes_sizes_and_voxel_size_in_the_order_of_the_network(tmp_path):
    _, package, description = packaged(tmp_path, small(transpose=(1, 0, 2)), **THREE)
    (image,), (probabilities,) = description["inputs"], description["outputs"]
    batch, channel, *space = image["axes"]
    assert (batch, channel) == ({"type": "batch"}, {"type": "channel", "channel_names": ["stain 0"]})
    assert [(axis["id"], axis["size"], axis["unit"]) for axis in space] == [
        ("y", {"min": 8, "step": 4}, "micrometer"),
        ("z", {"min": 16, "step": 4}, "micrometer"),
        ("x", {"min": 24, "step": 4}, "micrometer"),
    ]
    assert [axis["scale"] for axis in space] == pytest.approx([4.0, 1.5, 1.6], rel=1e-7)
    assert all(size * axis["scale"] / axis["scale"] == size for axis in space for size in range(8, 400))
    assert probabilities["axes"][1]["channel_names"] == ["background", "cell", "vessel"]
    assert [axis["size"]["axis_id"] for axis in probabilities["axes"][2:]] == ["y", "z", "x"]
    assert (description["authors"], description["license"]) == ([{"name": "A. Person"}], "CC-BY-NC-4.0")
    page = (package / "README.md").read_text()
    assert "\n# Validation\n" in page
    assert "Not known" in page
    assert all(limit in page for limit in LIMITS)


def test_without_a_physical_size_no_unit_is_stated(tmp_path):
    _, package, description = packaged(tmp_path, small(spacing=(1.0, 1.0, 1.0)))
    assert all("unit" not in axis for axis in description["inputs"][0]["axes"])
    assert "no physical size was stated" in (package / "README.md").read_text()


def test_both_weights_compute_the_same_at_another_size(tmp_path):
    _, package, description = packaged(tmp_path, small())
    weights = description["weights"]["pytorch_state_dict"]
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    assert weights["architecture"]["import_from"] == get_network_from_plans.__module__
    network = get_network_from_plans(**weights["architecture"]["kwargs"]).eval()
    network.load_state_dict(torch.load(package / weights["source"], weights_only=True))
    script = torch.jit.load(str(package / description["weights"]["torchscript"]["source"]))
    images = torch.rand(2, 1, 12, 20, 16)
    with torch.inference_mode():
        torch.testing.assert_close(script(images), network(images))


def unpacked(path):
    """The bytes of a file, or of all files within it."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def test_no_folder_of_this_machine_is_in_a_package(tmp_path):
    _, package, _ = packaged(tmp_path, small())
    for path in package.iterdir():
        for folder in (tmp_path, REPOSITORY, Path(torch.__path__[0]).parent):
            assert str(folder).encode() not in unpacked(path), path


@pytest.mark.parametrize(
    ("layout", "ancestor", "light_sheet", "question"),
    [
        ("bioimage_archive", "random", True, True),
        ("pairs", "random", False, False),
        ("pairs", "pretrained", False, True),
        (None, "random", False, True),
    ],
)
def test_microscopy_and_licence_follow_from_the_data(layout, ancestor, light_sheet, question, tmp_path):
    settings = write_model(tmp_path / "model", small())
    facts = facts_of(settings.folder)
    data = DataFacts(splits=(), manifest={"layout": layout, "cases": {}} if layout else None)
    folds = tuple(replace(fold, ancestor={"weights": ancestor}) for fold in facts.folds)
    write_files(replace(facts, data=data, folds=folds), tmp_path / "package", NAMED)
    description = json.loads((tmp_path / "package" / "rdf.yaml").read_text())
    assert ("light-sheet microscopy" in description["tags"]) == light_sheet
    assert ("light-sheet" in description["description"]) == light_sheet
    assert "3d" in description["tags"]
    page = (tmp_path / "package" / "README.md").read_text()
    assert "Of this package: CC-BY-NC-4.0." in page
    assert (SELMA3D_QUESTION in page) == question


def test_every_file_that_is_named_is_there_with_its_hash(tmp_path):
    _, package, description = packaged(tmp_path, small())

    def files(content):
        if isinstance(content, dict):
            if "sha256" in content:
                yield content["source"], content["sha256"]
            content = list(content.values())
        if isinstance(content, list):
            for part in content:
                yield from files(part)

    named = dict(files(description))
    assert named.keys() | {"rdf.yaml"} == {path.name for path in package.iterdir()}
    assert all(sha256((package / name).read_bytes()).hexdigest() == value for name, value in named.items())


def changed(content, **entries):
    content["configurations"]["3d_fullres"] |= entries
    return content


def with_other_weights(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["network_weights"].popitem()
    torch.save(checkpoint, path)


def with_a_network_of_ours(folder):
    content = json.loads((folder / "plans.json").read_text())
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "nnunet_selma.networks.A"
    (folder / "plans.json").write_text(json.dumps(content))


def with_masked_normalisation(folder):
    content = json.loads((folder / "plans.json").read_text())
    content["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]
    (folder / "plans.json").write_text(json.dumps(content))


def of_a_pretraining(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "pretext_state": {"a": 1}}, path)


@pytest.mark.parametrize(
    ("spoil", "more", "name", "words"),
    [
        (with_other_weights, {}, None, "other weights"),
        (with_a_network_of_ours, {}, None, "nnunet_selma.networks.A"),
        (with_masked_normalisation, {}, None, "non-zero"),
        (of_a_pretraining, {}, None, "is a pretraining"),
        (lambda folder: None, {"folds": 2}, None, "the folds 0 1"),
        (lambda folder: None, {"content": small(scheme="CTNormalization")}, None, "CTNormalization"),
        (lambda folder: None, {}, "a/b/c", "a/b/c"),
    ],
)
def test_models_that_the_format_cannot_express_are_refused(spoil, more, name, words, tmp_path):
    settings = write_model(tmp_path / "model", **{"content": small(), **more})
    spoil(settings.folder)
    with pytest.raises(SelmaError, match=words):
        write_files(facts_of(settings.folder), tmp_path / "package", PackageSettings(name=name))
    assert not (tmp_path / "package").exists()


def interpreter(folder, answer, code=0):
    """A program that answers as a Python with or without bioimageio.core would."""
    path = folder / "python"
    stream = "" if code == 0 else " >&2"
    path.write_text(f"#!/bin/sh\necho '{answer}'{stream}\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("ModuleNotFoundError: No module named bioimageio", 1, r"nnunet-selma\[bioimageio\]"),
        ("TypeError: pydantic", 1, "the versions"),
        ('{"status": "failed", "faults": ["weights differ"], "versions": {}}', 0, "weights differ"),
    ],
)
def test_a_package_that_did_not_pass_is_not_left_behind(answer, code, words, tmp_path):
    settings = write_model(tmp_path / "model", small())
    before = sorted(tmp_path.iterdir())
    (tmp_path / "other").mkdir()
    with pytest.raises(SelmaError, match=words):
        write_package(
            facts_of(settings.folder),
            tmp_path / "package.zip",
            NAMED,
            python=interpreter(tmp_path / "other", answer, code),
        )
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "other"])


@pytest.mark.parametrize("name", ["package", "package.zip"])
def test_a_package_that_passed_has_its_name_and_replaces_nothing(name, tmp_path):
    settings = write_model(tmp_path / "model", small())
    python = interpreter(tmp_path, '{"status": "passed", "faults": [], "versions": {"torch": "2"}}')
    assert write_package(facts_of(settings.folder), tmp_path / name, NAMED, python=python) == {"torch": "2"}
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            files = set(archive.namelist())
    else:
        files = {path.name for path in (tmp_path / name).iterdir()}
    assert {"rdf.yaml", "weights.pt", "weights_torchscript.pt", "README.md"} < files
    with pytest.raises(SelmaError, match="exists already"):
        write_package(facts_of(settings.folder), tmp_path / name, NAMED, python=python)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python of a new environment with bioimageio.core as pinned; all else is that of this environment."""
    import nnunetv2

    folder = tmp_path_factory.mktemp("bioimageio")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "this_environment.pth").write_text(f"{Path(nnunetv2.__path__[0]).parent}\n")
    extra = ("bioimageio.core==0.11.*", "pydantic<2.14")
    python = folder / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *extra], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"bioimageio.core cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "more"),
    [(small(), {}), (small(transpose=(1, 0, 2), spacing=(1.0, 1.0, 1.0)), {**REGIONS, "channels": 2})],
    ids=["classes", "regions, transposed, two channels, voxels"],
)
def test_bioimageio_core_passes_the_package(content, more, python, tmp_path):
    settings = write_model(tmp_path / "model", content, **more)
    versions = write_package(facts_of(settings.folder), tmp_path / "package.zip", NAMED, python=python)
    assert versions["bioimageio.spec"].startswith("0.5.12")


def package_by_command(folder, python, *options):
    """Exit code of publish --bioimageio of a small model."""
    settings = write_model(folder / "Dataset510_A" / "SelmaFinetuneTrainer__nnUNetPlans__3d_fullres", small())
    command = ["publish", settings.folder, "-o", folder / "package.zip", "--bioimageio", "--bioimageio-python", python]
    return cli.main([*map(str, [*command, "--license", "cc-by-4.0", "--name", "Small test model", *options])])


def test_the_command_writes_a_package_and_says_what_it_lacks(tmp_path, capsys):
    passes = interpreter(tmp_path, '{"status": "passed", "faults": [], "versions": {"torch": "2"}}')
    assert package_by_command(tmp_path, passes, "--author", "A. Person", "-f", "0") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'package.zip'}: passed test_model with torch 2" in said
    assert all(f"not expressed: {limit}" in said for limit in LIMITS)
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        description = json.loads(archive.read("rdf.yaml"))
        assert "# Validation\n\nNot known" in archive.read("README.md").decode()
    assert description["name"] == "Small test model"
    assert (description["authors"], description["license"]) == ([{"name": "A. Person"}], "CC-BY-4.0")


@pytest.mark.slow
def test_the_command_packages_for_bioimageio_core(python, tmp_path, capsys):
    assert package_by_command(tmp_path, python) == 0
    assert "passed test_model with bioimageio.core 0.11" in capsys.readouterr().out


@pytest.mark.slow
def test_bioimageio_core_fails_a_package_whose_output_is_another(python, tmp_path):
    _, package, description = packaged(tmp_path, small())
    output = np.load(package / "test_output.npy")
    np.save(package / "test_output.npy", np.ascontiguousarray(output[:, ::-1]))
    description["outputs"][0]["test_tensor"].pop("sha256")
    (package / "rdf.yaml").write_text(json.dumps(description))
    with pytest.raises(SelmaError, match="test_model"):
        check_package(package, python)
