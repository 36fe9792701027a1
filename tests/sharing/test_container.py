"""The folder for `docker build`, read as Docker and pip would read it."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.prediction.model import Model, ModelSettings
from nnunet_selma.routing.routers import open_router
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.sharing import container, docker_files
from nnunet_selma.sharing.cases import find_case
from nnunet_selma.sharing.container import write_archive
from nnunet_selma.sharing.editions import EDITIONS
from nnunet_selma.sharing.packed_model import PackedModel, read_packed_model, write_packed_model
from nnunet_selma.sharing.serve import command_parser
from nnunet_selma.volumes import open_volume
from tests.conftest import REPOSITORY
from tests.plans import plans
from tests.prediction.models import write_model
from tests.routing.test_routers import pretraining
from tests.sharing.models import HOME, write_segmentation

OF_TRAINING = {"optimizer_state", "grad_scaler_state", "logging"}


def write_trained(folder, **options):
    """A model as a training leaves it, with the state of its optimiser."""
    settings = write_model(folder, **options)
    for fold in settings.folds:
        path = settings.checkpoint_of(fold)
        checkpoint = torch.load(path, weights_only=False)
        momenta = {
            number: {"momentum_buffer": value.clone()}
            for number, value in enumerate(checkpoint["network_weights"].values())
        }
        extra = {
            "optimizer_state": {"state": momenta, "param_groups": []},
            "grad_scaler_state": None,
            "logging": {"ema": [0.5]},
        }
        torch.save({**checkpoint, **extra, "current_epoch": 3, "selma_ancestor": {"weights": "random"}}, path)
    return settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained") / "model", folds=2)


@pytest.fixture(scope="module", params=[(2024, "cpu"), (2026, "cuda")], ids=["2024, CPU", "2026, CUDA"])
def written(request, trained, tmp_path_factory):
    edition, base = request.param
    folder = tmp_path_factory.mktemp("containers") / "My Team_1"
    command = [
        "container",
        trained.folder,
        "-o",
        folder,
        "--edition",
        edition,
        "--base",
        base,
        "--remove-below",
        5,
        "--tta",
    ]
    assert cli.main([str(word) for word in command]) == 0
    return folder, EDITIONS[edition], base


def instructions(folder):
    """Name and rest of each instruction of the Dockerfile."""
    lines = (folder / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def only(pairs, name):
    (rest,) = (rest for key, rest in pairs if key == name)
    return rest


def test_the_dockerfile_is_for_the_platform(written):
    folder, edition, base = written
    parts = instructions(folder)
    assert parts[0] == ("FROM", f"--platform=linux/amd64 python:{sys.version.split()[0]}-slim")
    assert {name for name, _ in parts} <= {
        "FROM",
        "LABEL",
        "ENV",
        "RUN",
        "WORKDIR",
        "ARG",
        "COPY",
        "USER",
        "EXPOSE",
        "ENTRYPOINT",
    }
    names = [name for name, _ in parts]
    assert only(parts, "USER") == "user"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert any(name == "RUN" and "useradd" in rest and "user" in rest for name, rest in parts)
    label = [rest for name, rest in parts if name == "LABEL"]
    assert label == (['org.grand-challenge.api-method="invoke"'] if edition.year == 2026 else [])
    assert [rest for name, rest in parts if name == "EXPOSE"] == (["4743"] if edition.year == 2026 else [])
    assert ("https://download.pytorch.org/whl/cpu" in only(parts, "ARG")) == (base == "cpu")
    assert any("NVIDIA" in rest for name, rest in parts if name == "ENV") == (base == "cuda")


def test_the_sources_that_are_copied_are_there_and_not_ignored(written):
    folder, edition, _ = written
    ignored = (folder / ".dockerignore").read_text().split()
    sources = [
        word
        for name, rest in instructions(folder)
        if name == "COPY"
        for word in rest.split()[:-1]
        if not word.startswith("--")
    ]
    assert set(sources) == {"requirements.txt", "package", *([] if edition.apart else ["resources"])}
    for source in sources:
        assert (folder / source).exists()
        assert source not in ignored
    assert {path.name for path in folder.iterdir()} == {
        *("Dockerfile", ".dockerignore", "README.md", "fake"),
        *("requirements.txt", "package", "model.tar.gz" if edition.apart else "resources"),
    }


def test_the_entry_program_takes_the_arguments(written):
    folder, edition, _ = written
    python, minus_m, module, *arguments = json.loads(only(instructions(folder), "ENTRYPOINT"))
    assert (python, minus_m, module) == ("python", "-m", "nnunet_selma.sharing.serve")
    assert (folder / "package" / Path(*module.split("."))).with_suffix(".py").is_file()
    chosen = command_parser().parse_args(arguments)
    assert (chosen.edition, chosen.input, chosen.output) == (edition.year, Path("/input"), Path("/output"))
    assert chosen.model == Path("/opt/ml/model" if edition.apart else "/opt/app/resources")
    assert chosen.port == 4743
    copied = f"resources {chosen.model}"
    assert any(name == "COPY" and rest.endswith(copied) for name, rest in instructions(folder)) != edition.apart


def test_versions_are_those_that_are_installed(written):
    folder, _, _ = written
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    line = next(rest for name, rest in instructions(folder) if name == "RUN" and "torch==" in rest)
    pins |= dict(word.split("==") for word in line.split() if "==" in word)
    assert {name: importlib.metadata.version(name).split("+")[0] for name in pins} == pins
    direct = {
        "nnunetv2",
        "torch",
        "numpy",
        "scipy",
        "scikit-image",
        "simpleitk",
        "nibabel",
        "tifffile",
        "zarr",
        "ome-zarr-models",
    }
    indirect = {"batchgenerators", "dynamic-network-architectures", "pydantic", "torchvision"}
    assert direct | indirect <= set(pins)
    assert not {name for name in pins if name.startswith("nvidia") or name in ("triton", "pytest", "ruff")}


def test_the_package_is_this_one(written):
    tomllib = pytest.importorskip("tomllib")
    folder, _, _ = written
    package = folder / "package"
    source = REPOSITORY / "nnunet_selma"
    kept = {
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    copied = {
        path.relative_to(package / "nnunet_selma") for path in (package / "nnunet_selma").rglob("*") if path.is_file()
    }
    assert copied == kept
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert all("==" in each for each in [*project["build-system"]["requires"], *project["project"]["dependencies"]])
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["name"] == "nnunet-selma"
    assert project["project"]["scripts"] == ours["project"]["scripts"]
    assert project["tool"]["setuptools"] == ours["tool"]["setuptools"]
    assert {path.name for path in package.iterdir()} == {"nnunet_selma", "pyproject.toml", "LICENSE"}


def unpacked(written, place):
    """The folder of the model as the container sees it."""
    folder, edition, _ = written
    if not edition.apart:
        return folder / "resources"
    with tarfile.open(folder / "model.tar.gz") as tar:
        names = tar.getnames()
        tar.extractall(place, filter="data")
        modes = {entry.mode for entry in tar if entry.isfile()}
    assert names[:2] == [".", "./models"]
    assert modes == {0o644}
    return place


def test_the_model_is_packed_without_the_optimiser(written, trained, tmp_path):
    packed = read_packed_model(unpacked(written, tmp_path / "model"))
    (model,) = packed.models.values()
    assert (model.folds, model.mirroring, packed.remove_below, packed.router) == (("0", "1"), True, 5, None)
    for fold in model.folds:
        before = torch.load(trained.checkpoint_of(fold), weights_only=False)
        after = torch.load(model.checkpoint_of(fold), weights_only=False)
        assert before.keys() - after.keys() == OF_TRAINING
        assert after["selma_ancestor"] == {"weights": "random"}
        weights = before["network_weights"]
        assert weights.keys() == after["network_weights"].keys()
        assert all(torch.equal(weights[key], after["network_weights"][key]) for key in weights)
        assert model.checkpoint_of(fold).stat().st_size < 0.7 * trained.checkpoint_of(fold).stat().st_size
    assert Model(model, "cpu").channels == ("stain 0",)


def test_the_fake_case_is_one(written):
    folder, edition, _ = written
    case = find_case(folder / "fake" / "input", edition)
    assert case.structure.prefix == "cell_nuclei"
    volume = open_volume(case.path)
    assert (volume.dtype, volume.spacing_um_zyx) == (np.uint16, None)


def test_the_readme_has_the_three_commands(written):
    folder, edition, _ = written
    text = (folder / "README.md").read_text()
    assert "        docker build --platform linux/amd64 -t my-team-1 ." in text
    assert "        docker save my-team-1 | gzip > my-team-1.tar.gz" in text
    assert "docker run --rm" in text
    assert ("model.tar.gz" in text) == edition.apart
    blocks = re.findall(r"(?:^ {8}\S.*\n)+(?: {12}.*\n)?(?: {8}.*\n)*", text, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert shlex.split(block)  # quotes are closed
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    assert "Components of fewer than 5 voxels are removed." in text


def test_the_same_model_makes_the_same_archive(trained, tmp_path):
    for name in ("a", "b"):
        write_packed_model(PackedModel(models={"other": trained}), tmp_path / name / "model")
        os.utime(tmp_path / name / "model" / "prediction.json", (1, 1))
        write_archive(tmp_path / name / "model", tmp_path / name / "model.tar.gz")
    first, second = ((tmp_path / name / "model.tar.gz").read_bytes() for name in ("a", "b"))
    assert len(first) == len(second)
    assert first == second


def refused(capsys, output, *arguments):
    """The sentence of a command that leaves nothing behind."""
    before = set(output.parent.iterdir())
    assert cli.main(["container", *map(str, arguments), "-o", str(output), "--edition", "2026"]) == 2
    assert set(output.parent.iterdir()) == before
    return capsys.readouterr().err


def test_what_cannot_become_a_container(trained, tmp_path, capsys, monkeypatch):
    place = tmp_path / "out"
    place.mkdir()
    model, target = trained.folder, place / "container"
    both = write_model(tmp_path / "both", channels=2)
    cut = shutil.copytree(model, tmp_path / "cut")
    checkpoint = cut / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (place / "full").mkdir()
    (place / "full" / "notes.txt").write_text("mine")
    assert "full: exists already; remove it, or choose another -o" in refused(capsys, place / "full", model)
    assert "nowhere: there is no such folder" in refused(capsys, tmp_path / "out" / "c", tmp_path / "nowhere")
    assert "was trained on 2 channels (stain 0, stain 1)" in refused(capsys, target, both.folder)
    assert "cut/fold_0/checkpoint_final.pth: is no checkpoint or is cut short" in refused(capsys, target, cut, "-f", 0)
    assert "fold_4/checkpoint_final.pth is missing" in refused(capsys, target, model, "-f", 4)
    assert "give either the folder of one model, or a --router" in refused(capsys, target)
    assert "a router needs the models" in refused(capsys, target, model, "--router", "router.pt")
    assert "a router needs the models" in refused(capsys, target, "--model", f"other={model}")
    assert "router.pt: there is no such router" in refused(
        capsys, target, "--model", f"other={model}", "--router", tmp_path / "router.pt"
    )
    version = docker_files._version
    monkeypatch.setattr(docker_files, "_version", lambda name: None)
    assert "nnunet-selma is not installed here" in refused(capsys, target, model)
    monkeypatch.setattr(docker_files, "_version", lambda name: None if name == "zarr" else version(name))
    assert "pip install 'nnunet-selma[brains]' first" in refused(capsys, target, model)


def test_an_empty_folder_is_taken_and_an_error_leaves_nothing(trained, tmp_path, monkeypatch):
    (tmp_path / "box").mkdir()  # empty
    command = ["container", str(trained.folder), "-o", str(tmp_path / "box"), "--edition", "2024", "-f", "1"]
    assert cli.main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    assert read_packed_model(tmp_path / "box" / "resources").models["other"].folds == ("1",)

    def fail(*_):
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(container, "_write_fake_case", fail)
    assert cli.main([*command[:3], str(tmp_path / "other"), *command[4:]]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_a_router_and_its_models(trained, tmp_path, capsys):
    """A DenseNet, saved as train-router does, and two classes that share a model."""
    pytest.importorskip("monai")
    from nnunet_selma.routing.routers import DenseNetRouter

    tiny = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}
    router = DenseNetRouter(("cfos_neuron", "microglia"), (16, 16, 16), tiny, torch.device("cpu"))
    router.save(tmp_path / "router.pt")
    other = write_model(tmp_path / "trained", seed=5)
    (tmp_path / "out").mkdir()
    options = [
        "--router",
        tmp_path / "router.pt",
        "--model",
        f"cfos_neuron={trained.folder}",
        "--model",
        f"other={other.folder}",
    ]
    sentence = refused(capsys, tmp_path / "out" / "box", *options, "--model", f"AD_plaques={other.folder}")
    assert "the router knows no AD_plaques; its classes are cfos_neuron, microglia" in sentence
    command = [
        "container",
        "-o",
        tmp_path / "out" / "box",
        "--edition",
        2024,
        *options,
        "--model",
        f"microglia={other.folder}",
    ]
    assert cli.main([str(word) for word in command]) == 0
    resources = tmp_path / "out" / "box" / "resources"
    packed = read_packed_model(resources)
    assert {name: model.folds for name, model in packed.models.items()} == {
        "cfos_neuron": ("0", "1"),
        "other": ("0",),
        "microglia": ("0",),
    }
    assert packed.models["other"].folder == packed.models["microglia"].folder
    assert open_router(packed.router, torch.device("cpu")).classes == router.classes
    assert sorted(path.name for path in resources.iterdir()) == ["models", "prediction.json", "router.pt"]


def test_a_pretraining_as_a_router(trained, tmp_path):
    """Its fold folder is copied with the plans around it, and without the optimiser."""
    fold = trained.folder / "fold_1"
    write_packed_model(PackedModel(models={"other": trained}, router=fold), tmp_path / "packed")
    router = read_packed_model(tmp_path / "packed").router
    assert router == tmp_path / "packed" / "router" / "fold_1"
    assert read_json(router.parent / "plans.json") == read_json(trained.folder / "plans.json")
    assert (router.parent / "dataset.json").is_file()
    assert not OF_TRAINING & torch.load(router / "checkpoint_final.pth", weights_only=True).keys()


def test_a_packed_pretraining_routes_as_before(trained, tmp_path):
    """The classifier in the state of the pretext stays, because the router reads it."""
    fold, _, pretext = pretraining(tmp_path / "pretraining")
    write_packed_model(PackedModel(models={"other": trained}, router=fold), tmp_path / "packed")
    packed = read_packed_model(tmp_path / "packed").router
    patches = torch.randn(3, 1, 16, 16, 16)
    before, after = (open_router(folder, torch.device("cpu")) for folder in (fold, packed))
    assert after.classes == before.classes
    torch.testing.assert_close(after.probabilities(patches), before.probabilities(patches), rtol=0, atol=0)
    state = torch.load(packed / "checkpoint_final.pth", weights_only=True)["pretext_state"]
    assert state.keys() == {"structure.weight", "structure.bias", "seen"} < pretext.state_dict().keys()


def test_no_folder_of_this_machine_is_packed(tmp_path):
    folder = write_segmentation(tmp_path / "workspace")
    dataset = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**dataset, "reference": f"{HOME}/raw data/notes.txt"})
    model = ModelSettings(folder=folder, folds=("0", "1"))
    write_packed_model(PackedModel(models={"other": model}), tmp_path / "packed")
    files = [path for path in (tmp_path / "packed").rglob("*") if path.is_file()]
    assert len(files) == 5
    for path in files:
        assert HOME.encode() not in path.read_bytes(), path
        assert str(tmp_path).encode() not in path.read_bytes(), path
    for path in (tmp_path / "packed").rglob("*.pth"):
        torch.load(path, weights_only=True)  # as the strictest readers do
    assert read_json(tmp_path / "packed/models/other/dataset.json")["labels"] == dataset["labels"]


def test_cases_without_a_voxel_size_are_announced(tmp_path, capsys):
    content = plans()
    content["original_median_spacing_after_transp"] = [5.0, 0.6, 0.6]
    model = write_model(tmp_path / "model", content).folder
    for name, options, announced in (("a", [], True), ("b", ["--spacing", "4,1,1"], False)):
        command = ["container", str(model), "-o", str(tmp_path / name), "--edition", "2024", *options]
        assert cli.main(command) == 0
        said = capsys.readouterr().out
        assert ("warning: The model was trained with a voxel size" in said) == announced
        assert ("lymphatic_vessel, peripheral_nerve, axonalmarker, gutnerve" in said) == announced
    assert read_packed_model(tmp_path / "b" / "resources").spacing_um_zyx == (4.0, 1.0, 1.0)


@pytest.mark.slow
def test_pip_installs_the_package_and_the_program_takes_the_archive(written, tmp_path):
    """As in the image: the packaged source, the model where the edition has it, the fake case."""
    folder, _, _ = written
    site = tmp_path / "site"
    source = shutil.copytree(folder / "package", tmp_path / "package")  # pip writes into it
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        site,
        source,
    ]
    subprocess.run(list(map(str, install)), check=True)
    output = tmp_path / "output"
    output.mkdir()
    arguments = [
        "--input",
        folder / "fake" / "input",
        "--output",
        output,
        "--model",
        unpacked(written, tmp_path / "model"),
    ]
    program = "import nnunet_selma, sys; print(nnunet_selma.__file__); from nnunet_selma.sharing.serve import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--edition", "2024", *map(str, arguments), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert [path for path in output.rglob("*") if path.is_file()] == [output / EDITIONS[2024].output]


def engine():
    """Docker or Podman where its engine answers; else None."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.mark.slow
def test_docker_builds_and_runs_it(written, tmp_path):
    tool = engine()
    if tool is None:
        pytest.skip("neither docker nor podman has an engine here")
    folder, edition, _ = written
    text = (folder / "README.md").read_text().replace(" --gpus all", "").replace("docker ", f"{tool} ")
    commands = re.findall(r"(?:^ {8}\S.*\n(?: {12}.*\n)*)+", text, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-e"], input="".join(commands[:2]), text=True, cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "fake" / "output" / edition.output).is_file()
