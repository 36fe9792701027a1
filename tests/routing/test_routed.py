from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.routing.routed import RoutedSettings, find_case_files, predict_routed
from nnunet_selma.routing.routers import Router
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image

SHAPE = (9, 10, 11)
CLASSES = ("cfos_neuron", "microglia", "other")


class Fake(Router):
    """Knows a volume by the share of its bright voxels, which is 1/4, 1/2 or 3/4."""

    classes, patch_zyx, channels, device = CLASSES, SHAPE, 1, torch.device("cpu")

    def probabilities(self, patches):
        share = (patches[:, 0] > 0).float().mean((1, 2, 3))
        chosen = (share * 4).round().long() - 1
        return torch.nn.functional.one_hot(chosen, 3).float() * 0.7 + 0.1


def write_case(folder, case, seen, rng, channels=1):
    """An image that the fake router takes for a class."""
    voxels = np.arange(np.prod(SHAPE)) < np.prod(SHAPE) * (1 + CLASSES.index(seen)) / 4
    for channel in range(channels):
        image = rng.permutation(voxels).reshape(SHAPE).astype(np.uint16) * 1000
        write_image(folder / f"{case}_{channel:04d}.nii.gz", image)


def segmentation():
    """What the fake command predicts: a component of 8 voxels, one of 2, and one of 1."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[:2, :2, :2], mask[5, 5, 5:7], mask[8, 9, 10] = 1, 1, 1
    return mask


def write_model(folder, ending=".nii.gz", channels=1):
    for name in ("plans.json", "fold_0/checkpoint_final.pth", "fold_all/checkpoint_best.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"network_weights": {"weight": torch.zeros(2)}}, folder / name)
    names = {str(number): f"stain {number}" for number in range(channels)}
    write_json(folder / "dataset.json", {"file_ending": ending, "channel_names": names})
    return folder


@pytest.fixture
def models(tmp_path):
    return {name: write_model(tmp_path / "models" / name) for name in ("cfos_neuron", "other")}


@pytest.fixture
def calls(monkeypatch):
    """Commands in place of nnU-Net's, with the files of their input folders and where these lead."""
    seen = []

    def run(command, environment=None):
        option = dict(pairwise(command))
        links = {path.name: path.resolve() for path in sorted(Path(option["-i"]).iterdir())}
        seen.append((command, links, environment))
        for case in {name[: -len("_0000.nii.gz")] for name in links}:
            write_image(Path(option["-o"]) / f"{case}.nii.gz", segmentation(), spacing_zyx=(3.0, 2.0, 1.0))
        (Path(option["-o"]) / "plans.json").write_text("{}")

    monkeypatch.setattr(commands, "run", run)
    return seen


def test_each_case_goes_to_the_model_of_its_class(tmp_path, rng, models, calls):
    cases = {"a": "other", "b": "cfos_neuron", "c_1": "microglia", "d": "cfos_neuron"}
    for case, seen in cases.items():
        write_case(tmp_path / "in", case, seen, rng)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    records = predict_routed(tmp_path / "in", output, Fake(), models, RoutedSettings(remove_below=2))
    assert [(one["case"], one["class"], one["model"], one["removed_components"]) for one in records] == [
        ("a", "other", "other", 1),
        ("b", "cfos_neuron", "cfos_neuron", 1),
        ("c_1", "microglia", "other", 1),
        ("d", "cfos_neuron", "cfos_neuron", 1),
    ]
    sent = {command[command.index("-m") + 1]: links for command, links, _ in calls}
    assert len(calls) == 2
    for name, own in (("other", ("a", "c_1")), ("cfos_neuron", ("b", "d"))):
        files = [f"{case}_0000.nii.gz" for case in own]
        assert sent[str(models[name])] == {file: tmp_path / "in" / file for file in files}
    routes = read_json(output / "routes.json")
    assert routes["cases"] == records
    assert routes["models"] == {name: str(folder) for name, folder in models.items()}
    assert routes["remove_below"] == 2
    assert records[0]["probabilities"] == pytest.approx({"cfos_neuron": 0.1, "microglia": 0.1, "other": 0.8})
    assert sorted(path.name for path in output.iterdir()) == sorted([*(f"{c}.nii.gz" for c in cases), "routes.json"])
    expected = segmentation()
    expected[8, 9, 10] = 0
    written = open_volume(output / "c_1.nii.gz")
    assert np.array_equal(written.read(), expected)
    assert written.spacing_um_zyx == (3.0, 2.0, 1.0)


def test_the_command_is_what_a_user_would_type(tmp_path, rng, models, calls):
    write_case(tmp_path / "in", "a", "other", rng)
    settings = RoutedSettings(
        folds=("all",),
        checkpoint="checkpoint_best.pth",
        step_size=0.75,
        mirroring=False,
        device="cuda",
        workers=2,
        remove_below=0,
    )
    (record,) = predict_routed(
        tmp_path / "in", tmp_path / "out", Fake(), models, settings, environment={"nnUNet_extTrainer": "/trainers"}
    )
    ((command, _, environment),) = calls
    assert command[0] == "nnUNetv2_predict_from_modelfolder"
    assert command[5:] == [
        "-m",
        str(models["other"]),
        "-f",
        "all",
        "-chk",
        "checkpoint_best.pth",
        "-step_size",
        "0.75",
        "-device",
        "cuda",
        "-npp",
        "2",
        "-nps",
        "2",
        "--disable_tta",
    ]
    assert environment == {"nnUNet_extTrainer": "/trainers"}
    assert record["removed_components"] == 0
    assert np.array_equal(open_volume(tmp_path / "out" / "a.nii.gz").read(), segmentation())


def test_a_model_of_two_classes_runs_once_and_channels_stay_together(tmp_path, rng, calls):
    model = write_model(tmp_path / "model", channels=2)
    for case, seen in (("a", "other"), ("b", "cfos_neuron")):
        write_case(tmp_path / "in", case, seen, rng, channels=2)
    predict_routed(tmp_path / "in", tmp_path / "out", Fake(), {"cfos_neuron": model, "other": model}, RoutedSettings())
    ((_, links, _),) = calls
    assert list(links) == [f"{case}_{channel:04d}.nii.gz" for case in "ab" for channel in range(2)]
    assert links["b_0001.nii.gz"] == tmp_path / "in" / "b_0001.nii.gz"


def test_files_are_copied_where_there_are_no_links(tmp_path, rng, models, calls, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    write_case(tmp_path / "in", "a", "other", rng)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    predict_routed(tmp_path / "in", tmp_path / "out", Fake(), models, RoutedSettings())
    ((_, links, _),) = calls
    assert links["a_0000.nii.gz"].parent != tmp_path / "in"
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_class_without_a_model(tmp_path, rng, models, calls):
    write_case(tmp_path / "in", "a", "cfos_neuron", rng)
    write_case(tmp_path / "in", "b", "microglia", rng)
    del models["other"]
    with pytest.raises(SelmaError, match=r"case b shows microglia \(probability 0\.80\), for which there is no model"):
        predict_routed(tmp_path / "in", tmp_path / "out", Fake(), models, RoutedSettings())
    assert not calls
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_predicted(tmp_path, rng, models, calls):
    source = tmp_path / "in"

    def refused(sentence, models=models, **settings):
        with pytest.raises(SelmaError, match=sentence):
            predict_routed(source, tmp_path / "out", Fake(), models, RoutedSettings(**settings))
        assert not calls
        assert not (tmp_path / "out").exists()

    refused("in: there is no such folder")
    source.mkdir()
    refused(r"in: holds no images; the models take files named <case>_0000\.nii\.gz")
    write_case(source, "a", "other", rng, channels=2)
    refused(r"case a has 2 channels, and its model \(other\) was trained on 1: stain 0")
    write_image(source / "b.nii.gz", np.zeros(SHAPE, np.uint16))
    refused(r"b\.nii\.gz: the name lacks the number of its channel; call it b_0000\.nii\.gz")
    refused("knows no astrocyte; its classes are cfos_neuron, microglia, other", {"astrocyte": models["other"]})
    refused(r"is no complete model, fold_3/checkpoint_final\.pth is missing", folds=("0", "3"))
    refused(r"nowhere: there is no such folder", {"other": tmp_path / "nowhere"})
    nrrd = write_model(tmp_path / "nrrd", ending=".nrrd")
    torch.save(
        {"network_weights": {"a": torch.tensor([torch.nan])}},
        write_model(tmp_path / "lost") / "fold_0" / "checkpoint_final.pth",
    )
    refused(r"lost/fold_0/checkpoint_final\.pth: holds numbers that are not finite \(a\)", {"other": tmp_path / "lost"})
    refused("small components are removed from NIfTI only; add --remove-below 0", {"other": nrrd})
    refused(r"the models read different files: \.nii\.gz .*, \.nrrd", {**models, "microglia": nrrd})


def test_too_few_channels_for_the_router(tmp_path, rng, models, monkeypatch):
    write_case(tmp_path / "in", "a", "other", rng)
    monkeypatch.setattr(Fake, "channels", 2)
    with pytest.raises(SelmaError, match=r"case a has 1 channel and the router needs 2"):
        predict_routed(tmp_path / "in", tmp_path / "out", Fake(), models, RoutedSettings())


def test_nothing_is_left_of_a_prediction_that_failed(tmp_path, rng, models, calls, monkeypatch):
    write_case(tmp_path / "in", "a", "other", rng)
    predict_routed(tmp_path / "in", tmp_path / "out", Fake(), models, RoutedSettings())
    before = (tmp_path / "out" / "routes.json").read_text()

    def fail(*_):
        raise SelmaError("nnUNetv2_predict_from_modelfolder ended with code 1")

    for run, sentence in ((fail, "ended with code 1"), (lambda *_: None, "wrote no segmentation of a")):
        monkeypatch.setattr(commands, "run", run)
        with pytest.raises(SelmaError, match=sentence):
            predict_routed(tmp_path / "in", tmp_path / "out", Fake(), models, RoutedSettings())
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "routes.json"]
        assert (tmp_path / "out" / "routes.json").read_text() == before


def test_cases_are_found_by_the_names_that_nnunet_takes(tmp_path):
    for name in (
        "a_1_0000.nii.gz",
        "a_1_0001.nii.gz",
        "a_0000.nii.gz",
        "a_0000_0000.nii.gz",
        ".b_0000.nii.gz",
        "c.json",
    ):
        (tmp_path / name).write_text("")
    found = {case: [path.name for path in files] for case, files in find_case_files(tmp_path, ".nii.gz").items()}
    assert found == {
        "a": ["a_0000.nii.gz"],
        "a_0000": ["a_0000_0000.nii.gz"],
        "a_1": ["a_1_0000.nii.gz", "a_1_0001.nii.gz"],
    }


@pytest.fixture
def fake_router(monkeypatch):
    monkeypatch.setattr("nnunet_selma.routing.routers.open_router", lambda path, device: Fake())


def test_the_command_line(tmp_path, rng, models, calls, fake_router, capsys):
    write_case(tmp_path / "in", "a", "cfos_neuron", rng)
    where = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--router", "router.pt"]
    own = [option for name, folder in models.items() for option in ("--model", f"{name}={folder}")]
    options = ["-f", "all", "--checkpoint", "checkpoint_best.pth", "--disable_tta", "-step_size", "1", "--workers", "1"]
    assert cli.main(["predict-routed", *where, *own, *options, "--remove-below", "3"]) == 0
    assert "a: cfos_neuron (0.80), model cfos_neuron, 2 small components removed" in capsys.readouterr().out
    ((command, _, environment),) = calls
    assert command[command.index("-f") + 1 :][:5] == ["all", "-chk", "checkpoint_best.pth", "-step_size", "1.0"]
    assert command[-1] == "--disable_tta"
    assert environment["nnUNet_extTrainer"].endswith("ext_trainers")
    assert int(open_volume(tmp_path / "out" / "a.nii.gz").read().sum()) == 8


def test_the_defaults_are_those_of_the_team(tmp_path, rng, models, calls, fake_router, monkeypatch):
    monkeypatch.setattr("nnunet_selma.cli.shell.usual_device", lambda: "cpu")
    write_case(tmp_path / "in", "a", "other", rng)
    where = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--router", "router.pt"]
    assert cli.main(["predict-routed", *where, "--model", f"other={models['other']}", "--workers", "1"]) == 0
    ((command, _, _),) = calls
    assert command[7:-4] == ["-f", "0", "-chk", "checkpoint_final.pth", "-step_size", "0.5", "-device", "cpu"]
    assert read_json(tmp_path / "out" / "routes.json")["remove_below"] == 5


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (["kidney=x"], "unknown structure 'kidney'"),
        (["x"], "--model x: write the class and the folder of its model"),
        (["other="], "--model other=: write the class"),
        (["cFos=x", "cfos_neuron=y"], "cfos_neuron has a model already"),
        (["other=x"], "router.pt: there is no such router"),
    ],
)
def test_the_command_line_refuses(model, sentence, tmp_path, capsys):
    own = [option for one in model for option in ("--model", one)]
    where = ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "--router", str(tmp_path / "router.pt")]
    assert cli.main(["predict-routed", *where, *own]) == 2
    err = capsys.readouterr().err
    assert err.startswith("nnunet-selma: ")
    assert sentence in err
    assert not (tmp_path / "out").exists()
