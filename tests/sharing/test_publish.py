"""Published folders: complete, light, of no machine, and predicted by plain nnU-Net to the same labels."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.checkpoints import read_checkpoint
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.sharing.checking import problems_of
from nnunet_selma.sharing.licences import licence_named, licence_text
from nnunet_selma.sharing.publish import PublishSettings, licence_warning, publish
from tests.conftest import write_image
from tests.plans import network, plans
from tests.prediction.models import stock, texture, write_model
from tests.sharing.environments import predict, without_this_package
from tests.sharing.facts import PRETRAINED, model
from tests.sharing.models import HOME, write_pretraining, write_segmentation

SETTINGS = PublishSettings(license="cc-by-nc-4.0")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_segmentation(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def published(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "nuclei"
    publish(results, folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def published_pretraining(tmp_path_factory):
    from nnunet_selma.nnunet.folders import Folders

    root = tmp_path_factory.mktemp("pretraining")
    paths = {name: root / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")}
    with pytest.MonkeyPatch.context() as patch:
        for name, path in paths.items():
            path.mkdir()
            patch.setenv(f"nnUNet_{name}", str(path))
        source = write_pretraining(Folders(**paths))
    publish(source, root / "start", SETTINGS)
    return source, root / "start"


def test_a_published_segmentation_is_complete(published):
    assert problems_of(published) == []
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert files == {
        "LICENSE",
        "README.md",
        "config.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "plans.json",
        "splits_final.json",
        *(f"fold_{fold}/checkpoint_final.{suffix}" for fold in (0, 1) for suffix in ("pth", "safetensors")),
    }
    assert list(published.parent.iterdir()) == [published]


def test_a_published_pretraining_is_complete(published_pretraining):
    _, folder = published_pretraining
    assert problems_of(folder) == []
    assert {path.name for path in folder.iterdir()} == {
        "LICENSE",
        "README.md",
        "adaptation_plan.json",
        "checkpoint_final.pth",
        "checkpoint_final.safetensors",
        "config.json",
        "dataset.json",
        "plans.json",
        "ssl_summary.json",
    }


def test_checkpoints_hold_weights_and_what_predicts(results, published):
    for fold in (0, 1):
        before, after = (folder / f"fold_{fold}" / "checkpoint_final.pth" for folder in (results, published))
        content = torch.load(after, weights_only=True)  # as the strictest readers do
        assert set(content) == {
            "network_weights",
            "trainer_name",
            "init_args",
            "inference_allowed_mirroring_axes",
            "current_epoch",
            "selma_ancestor",
        }
        weights = torch.load(before, weights_only=False)["network_weights"]
        assert content["network_weights"].keys() == weights.keys()
        assert all(torch.equal(content["network_weights"][key], weight) for key, weight in weights.items())
        assert after.stat().st_size < before.stat().st_size / 2
    assert content["inference_allowed_mirroring_axes"] == (0, 1, 2)


def test_no_folder_of_this_machine_is_published(published, published_pretraining):
    ancestor = torch.load(published / "fold_0" / "checkpoint_final.pth", weights_only=True)["selma_ancestor"]
    assert ancestor["path"] == "Dataset500_B/SelmaSSLTrainer__p__3d_fullres/fold_all/checkpoint_final.pth"
    assert read_json(published / "plans.json")["selma"]["finetuning"]["pretrained"] == "weights.pth"
    assert read_json(published / "dataset.json")["reference"] == "licence.txt"
    assert read_json(published_pretraining[1] / "ssl_summary.json")["warnings"] == ["tiles: few"]
    assert "- warning of the training: tiles: few" in (published_pretraining[1] / "README.md").read_text()
    for path in (*published.rglob("*"), *published_pretraining[1].rglob("*")):
        if path.is_file():
            assert HOME.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("mirroring", [False, True])
def test_plain_nnunet_predicts_the_same_labels(results, published, rng, mirroring):
    image = texture(rng, (20, 18, 17), channels=2)
    labels = [
        stock(ModelSettings(folder=folder, folds=("0", "1"), mirroring=mirroring), image, (5.0, 1.5, 2.0))
        for folder in (results, published)
    ]
    assert len(np.unique(labels[0])) > 1
    np.testing.assert_array_equal(*labels)


def test_the_card_of_a_pretraining(published_pretraining):
    card = (published_pretraining[1] / "README.md").read_text(encoding="utf-8")
    for words in (
        "pipeline_tag: image-feature-extraction",
        "budget of fold 0: 5 epochs, 250 steps each, batches of 1 patch, 1,250 patches in all",
        "pretext: MaskedInpainting",
        "versions of the training: torch 2.0",
        "finetuning.pretrained=$PWD/start/checkpoint_final.pth",
        "nnUNetv2_preprocess_like_nnssl -d ID -n start -pc start/checkpoint_final.pth -am like_pretrained",
        "resamples to a voxel size of 1 × 1 × 1",
    ):
        assert words in card
    assert "cannot build" not in card
    assert "predict_from_modelfolder" not in card


def test_nnunets_development_version_takes_a_pretraining(published_pretraining):
    """Its steps on a downloaded folder: three files at the root, a strict reader, and the encoder by the names of the record."""
    _, folder = published_pretraining
    assert (folder / "config.json").is_file()
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    record = content["nnssl_adaptation_plan"]
    written = read_json(folder / "adaptation_plan.json")
    assert written.pop("trainer_name") == "SelmaSSLTrainer"
    assert written == record
    assert [set(citation) for citation in content["citations"]] == [{"type", "name", "apa_citations"}]
    (configuration,) = record["pretrain_plan"]["configurations"].values()
    assert configuration["patch_size"] == [16, 16, 16]
    net = network(read_json(folder / "plans.json"))
    prefix = record["key_to_encoder"] + "."
    encoder = {k.removeprefix(prefix): w for k, w in content["network_weights"].items() if k.startswith(prefix)}
    net.get_submodule(net.key_to_encoder).load_state_dict(encoder)
    assert all(f"{key}.weight" in content["network_weights"] for key in record["keys_to_in_proj"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_fine_tuning_takes_a_published_pretraining(published_pretraining, suffix):
    source, folder = published_pretraining
    before = read_checkpoint(source / "fold_0" / "checkpoint_final.pth")
    after = read_checkpoint(folder / f"checkpoint_final.{suffix}")
    assert after.of_pretext
    assert after.record == before.record
    assert after.weights.keys() == before.weights.keys()
    assert all(torch.equal(after.weights[key], weight) for key, weight in before.weights.items())


def test_a_model_of_which_little_is_known(tmp_path):
    publish(write_segmentation(tmp_path, plain=True), tmp_path / "hub" / "m", SETTINGS)
    assert problems_of(tmp_path / "hub" / "m") == []
    card = (tmp_path / "hub" / "m" / "README.md").read_text(encoding="utf-8")
    for words in ("a description", "which cases are of one animal", "how many epochs", "no evaluation was given"):
        assert f"ot known: {words}" in card


REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
OTHER_MODELS = {
    # name: plans, changes of the plans, arguments of write_model
    "2d": ("2d, 256×256", {"original_median_spacing_after_transp": [5.0, 1.0, 1.0]}, {}),
    "regions": ("small", {}, {"labels": REGIONS, "regions_order": [1, 2]}),
    "axes in another order": (
        "64×160×160, strides 8,32,32",
        {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]},
        {},
    ),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_models_are_complete(tmp_path, kind):
    name, changes, arguments = OTHER_MODELS[kind]
    write_model(tmp_path / "model", {**plans(name), **changes}, **arguments)
    publish(tmp_path / "model", tmp_path / "hub", SETTINGS)
    assert problems_of(tmp_path / "hub") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"license": "gpl"}, "--license gpl: is not known; choose one of cc-by-nc-4.0"),
        ({"name": "two words"}, "--name two words"),
        ({"repository": "nobody"}, "--repository nobody: .* ACCOUNT/NAME"),
        ({"folds": ("3",)}, "fold_3/checkpoint_final.pth is missing"),
        ({"checkpoint": "checkpoint_best.pth"}, "checkpoint_best.pth is missing"),
        ({"method": "a"}, "--method a: .* --evaluation"),
    ],
)
def test_a_choice_that_cannot_be_published(results, tmp_path, changes, sentence):
    settings = PublishSettings(**{"license": "mit", **changes})
    with pytest.raises(SelmaError, match=sentence):
        publish(results, tmp_path / "hub", settings)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(results, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "mine.txt").write_text("mine")
    with pytest.raises(SelmaError, match="exists already"):
        publish(results, tmp_path / "hub", SETTINGS)
    assert (tmp_path / "hub" / "mine.txt").read_text() == "mine"


def test_nothing_is_left_after_an_error(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    path = copy / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")
    torch.save(content, path)
    with pytest.raises(SelmaError, match="not finite"):
        publish(copy, tmp_path / "hub", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_several_pretrainings_are_not_chosen_from(published_pretraining, tmp_path):
    source = shutil.copytree(published_pretraining[0], tmp_path / "results")
    shutil.copytree(source / "fold_0", source / "fold_1")
    with pytest.raises(SelmaError, match="several pretrainings, fold 0 1; choose one with -f"):
        publish(source, tmp_path / "hub", SETTINGS)


def test_folds_of_two_trainings_are_not_mixed(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    path = copy / "fold_1" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainer_5epochs"}, path)
    with pytest.raises(SelmaError, match="fold 1 was trained with another"):
        publish(copy, tmp_path / "hub", SETTINGS)


def test_the_command_publishes_and_checks(results, tmp_path, capsys):
    folder = tmp_path / "nuclei"
    command = ["publish", str(results), "-o", str(folder)]
    assert cli.main(command) == 2
    assert "--license" in capsys.readouterr().err
    assert cli.main([*command, "--license", "CC-BY-4.0", "--repository", "lab/nuclei", "-f", "1"]) == 0
    out = capsys.readouterr().out
    assert f"hf upload lab/nuclei {folder}" in out
    assert "WARNING: CC-BY-4.0 allows commercial use" in out
    assert read_json(folder / "config.json")["folds"] == ["1"]
    assert cli.main(["publish", "--check", str(folder)]) == 0
    (folder / "LICENSE").unlink()
    (folder / "fold_1" / "checkpoint_final.pth").unlink()
    capsys.readouterr()
    assert cli.main(["publish", "--check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "LICENSE is missing" in out
    assert "2 problems" in out
    assert cli.main(["publish", "--check", str(tmp_path / "nothing")]) == 2
    assert cli.main(["publish", str(results), "--check", str(folder)]) == 2


@pytest.mark.slow
def test_nnunets_command_predicts_from_the_folder_without_this_package(results, published, tmp_path, rng):
    image = texture(rng, (20, 18, 17), channels=2)
    for channel, voxels in enumerate(image):
        write_image(tmp_path / "in" / f"case_{channel:04d}.nii.gz", voxels, (5.0, 1.5, 2.0))
    predict(without_this_package(tmp_path / "plain"), tmp_path, published, ["0", "1"])
    from nnunet_selma.volumes import open_volume

    labels = open_volume(tmp_path / "out" / "case.nii.gz").read()
    np.testing.assert_array_equal(
        labels, stock(ModelSettings(folder=results, folds=("0", "1")), image, (5.0, 1.5, 2.0))
    )


# ---- broken copies


def change_json(name, **entries):
    def change(folder):
        write_json(folder / name, {**read_json(folder / name), **entries})

    return change


def change_checkpoint(path, change):
    def rewrite(folder):
        content = torch.load(folder / path, weights_only=True)
        change(content)
        torch.save(content, folder / path)

    return rewrite


def cut(path):
    def truncate(folder):
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return truncate


def replace_text(name, old, new):
    def rewrite(folder):
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return rewrite


def without(path):
    return lambda folder: (folder / path).unlink()


def cut_section(title):
    def remove(folder):
        text = (folder / "README.md").read_text(encoding="utf-8")
        head, _, rest = text.partition(f"## {title}\n")
        (folder / "README.md").write_text(head + rest[rest.index("## ") :], encoding="utf-8")

    return remove


def empty_header(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text("---\n---\n" + text.split("---\n", 2)[2], encoding="utf-8")


def other_weights(folder):
    shutil.copyfile(
        folder / "fold_1" / "checkpoint_final.safetensors", folder / "fold_0" / "checkpoint_final.safetensors"
    )


def runs_code(folder):
    torch.save({"network_weights": subprocess.Popen}, folder / "fold_0" / "checkpoint_final.pth")


def with_nan(content):
    next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")


def of_another_class(labels):
    return {"background": 0, "cell": 1, "plaque": 2, "vessel": 3} if labels == 3 else {"background": 0, "cell": 1}


PTH = "fold_0/checkpoint_final.pth"
BROKEN = {
    "no plans": (without("plans.json"), "plans.json is missing"),
    "no dataset": (without("dataset.json"), "dataset.json is missing"),
    "no config": (without("config.json"), "config.json is missing"),
    "no licence": (without("LICENSE"), "LICENSE is missing"),
    "no card": (without("README.md"), "README.md is missing"),
    "plans are no JSON": (cut("plans.json"), "plans.json: is no valid JSON"),
    "no checkpoint of a fold": (without("fold_1/checkpoint_final.pth"), "fold_1/checkpoint_final.pth is missing"),
    "no fold": (lambda folder: shutil.rmtree(folder / "fold_1"), "fold_1/checkpoint_final.pth is missing"),
    "a truncated checkpoint": (cut(PTH), f"{PTH}: is no checkpoint or is cut short"),
    "a checkpoint that runs code": (runs_code, f"{PTH}: refused, because loading it would run code"),
    "an optimiser": (
        change_checkpoint(PTH, lambda content: content.update(optimizer_state={"state": {0: torch.ones(9)}})),
        f"{PTH}: still holds what only a training needs (optimizer_state)",
    ),
    "weights that are not finite": (change_checkpoint(PTH, with_nan), f"{PTH}: holds numbers that are not finite"),
    "no safetensors": (without("fold_0/checkpoint_final.safetensors"), "checkpoint_final.safetensors is missing"),
    "truncated safetensors": (cut("fold_0/checkpoint_final.safetensors"), "is no safetensors file or is cut short"),
    "other weights": (other_weights, "checkpoint_final.safetensors: holds other weights than checkpoint_final.pth"),
    "more labels": (change_json("dataset.json", labels=of_another_class(3)), "dataset.json: has 3 classes"),
    "fewer labels": (change_json("dataset.json", labels=of_another_class(1)), "dataset.json: has 1 class (cell)"),
    "weights of other labels": (
        change_json("dataset.json", labels=of_another_class(3)),
        f"{PTH}: does not fit the network of plans.json",
    ),
    "fewer channels": (change_json("dataset.json", channel_names={"0": "a"}), f"{PTH}: does not fit the network"),
    "another licence": (change_json("config.json", license="mit"), "LICENSE: does not name mit"),
    "a card of another licence": (
        replace_text("README.md", "license: cc-by-nc-4.0", "license: mit"),
        "README.md: says license mit in its front matter, and config.json says cc-by-nc-4.0",
    ),
    "a card without a section": (cut_section("Limits"), "README.md: has no section 'Limits'"),
    "a card with an empty front matter": (empty_header, "README.md: has no front matter that can be read"),
    "a front matter that is no YAML": (
        replace_text("README.md", "license: cc", "license: [cc"),
        "README.md: has no front matter that can be read",
    ),
    "a card without tags": (replace_text("README.md", "tags:\n", "other:\n"), "README.md: has no tags"),
    "a placeholder": (
        replace_text("README.md", "## Limits\n", "## Limits\n\n[More Information Needed]\n"),
        "README.md: still has a placeholder, 'More Information Needed'",
    ),
    "commands of another folder": (replace_text("README.md", "-m nuclei", "-m cells"), "with -m cells"),
    "commands of other folds": (
        replace_text("README.md", "-f 0 1", "-f 0 1 2"),
        "with -f 0 1 2, and the folds are 0 1",
    ),
}
FOREIGN = {
    # name in the plans that a check must not call: the entry of the architecture that gets it
    "torch.hub.load": "network_class_name",
    "os.system": "conv_op",
    "torch.nn.functional.torch.hub.load": "nonlin",
    "torch.nn.modules.module.Path": "norm_op",
    "dynamic_network_architectures.architectures.unet.torch.hub.load": "network_class_name",
    "torch.nn.init.ones_": "nonlin",
    "nnunet_selma.sharing.checking.problems_of": "network_class_name",
}
SHAPES = {
    # file: an entry, and contents that it cannot have
    "config.json": {"classes": (None, []), "folds": (None, [0], ["../x"], ["00"]), "license": (["mit"],)},
    "dataset.json": {"labels": (["a"], None), "channel_names": (["a"],)},
    "plans.json": {"configurations": (None, {"3d_fullres": 1}), "plans_name": (1,)},
}
BROKEN |= {
    f"{name} without a proper {entry}, {value}": (change_json(name, **{entry: value}), f"{name}: lacks {entry}, or")
    for name, entries in SHAPES.items()
    for entry, values in entries.items()
    for value in values
}
BROKEN |= {
    "plans without an architecture": (
        change_json("plans.json", configurations={"3d_fullres": {"spacing": [1, 1, 1]}}),
        "plans.json: its configuration 3d_fullres does not describe a network",
    ),
    "plans with an architecture that is none": (
        change_json("plans.json", configurations={"3d_fullres": {"architecture": {"arch_kwargs": 1}}}),
        "plans.json: its configuration 3d_fullres does not describe a network",
    ),
    "plans that inherit in a circle": (
        change_json("plans.json", configurations={"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}),
        "plans.json: its configuration a inherits from a, which is lacking or inherits from itself",
    ),
    "weights that are no dictionary": (
        change_checkpoint(PTH, lambda content: content.update(network_weights=torch.ones(2))),
        f"{PTH}: is no checkpoint of nnU-Net, its network_weights is no dictionary",
    ),
    "weights that are no tensors": (
        change_checkpoint(PTH, lambda content: content["network_weights"].update(dict.fromkeys("ab", 1))),
        f"{PTH}: does not fit the network of plans.json",
    ),
    "a licence that is no date": (
        replace_text("README.md", "license: cc-by-nc-4.0", "license: 2024-13-45"),
        "README.md: has no front matter that can be read",
    ),
    "splits that are no JSON": (cut("splits_final.json"), "splits_final.json: is no valid JSON"),
    "a fingerprint that is no JSON": (cut("dataset_fingerprint.json"), "dataset_fingerprint.json: is no valid JSON"),
    "a card without a class": (
        replace_text("README.md", "cell (1), plaque (2)", "cell (1)"),
        "README.md: does not name the class 'plaque' of config.json in its section 'Model'",
    ),
    "a card of another voxel size": (
        replace_text("README.md", "| voxel size | 5 ×", "| voxel size | 6 ×"),
        "README.md: does not say the voxel size of config.json, 5 × 1.5 × 2 µm (z, y, x), in its section 'Model'",
    ),
}
BROKEN_PRETRAINING = {
    "no plan of adaptation": (without("adaptation_plan.json"), "adaptation_plan.json is missing"),
    "a plan of another network": (
        replace_text("adaptation_plan.json", "PlainConvUNet", "ResidualEncoderUNet"),
        "adaptation_plan.json: describes another network than plans.json",
    ),
    "a plan of another patch": (
        change_json("adaptation_plan.json", recommended_downstream_patchsize=[8, 8, 8]),
        "adaptation_plan.json: differs from the record in checkpoint_final.pth (recommended_downstream_patchsize)",
    ),
    "a checkpoint without the plan": (
        change_checkpoint("checkpoint_final.pth", lambda content: content.pop("nnssl_adaptation_plan")),
        "checkpoint_final.pth: lacks the entry nnssl_adaptation_plan",
    ),
    "plans of another network": (
        replace_text("plans.json", "PlainConvUNet", "ResidualEncoderUNet"),
        "config.json: names the network dynamic_network_architectures.architectures.unet.PlainConvUNet",
    ),
    "a state of the pretext": (
        change_checkpoint("checkpoint_final.pth", lambda content: content.update(pretext_state={"a": torch.ones(2)})),
        "checkpoint_final.pth: still holds the state of the pretext",
    ),
    "a missing weight": (
        change_checkpoint("checkpoint_final.pth", lambda content: content["network_weights"].popitem()),
        "checkpoint_final.pth: does not fit the network of plans.json",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_segmentation(published, tmp_path, fault):
    folder = shutil.copytree(published, tmp_path / "nuclei")
    change, sentence = BROKEN[fault]
    change(folder)
    problems = problems_of(folder)
    assert [problem for problem in problems if sentence in problem], problems
    assert all(problem.startswith(str(folder)) for problem in problems)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", ["segmentation", "pretraining"])
def test_a_check_calls_nothing_but_networks(published, published_pretraining, tmp_path, monkeypatch, kind, name):
    folder = shutil.copytree(published if kind == "segmentation" else published_pretraining[1], tmp_path / "hub")
    plans = read_json(folder / "plans.json")
    (architecture,) = (each["architecture"] for each in plans["configurations"].values() if "architecture" in each)
    place = architecture if FOREIGN[name] == "network_class_name" else architecture["arch_kwargs"]
    assert place[FOREIGN[name]]
    place[FOREIGN[name]] = name
    write_json(folder / "plans.json", plans)
    from nnunetv2.utilities import get_network_from_plans

    monkeypatch.setattr(get_network_from_plans.pydoc, "locate", guarded(get_network_from_plans.pydoc.locate))
    problems = problems_of(folder)
    assert [problem for problem in problems if f"plans.json: names {name}, which is no network or layer" in problem]


def guarded(locate):
    """`locate`, that gives a class that fails the test when it is called."""

    def call(*_, **__):
        pytest.fail("code named by plans.json was called")

    def guard(name, forceload=0):
        found = locate(name, forceload)
        return call if callable(found) and not isinstance(found, type) else found

    return guard


@pytest.mark.parametrize("fault", BROKEN_PRETRAINING)
def test_a_broken_pretraining(published_pretraining, tmp_path, fault):
    folder = shutil.copytree(published_pretraining[1], tmp_path / "start")
    change, sentence = BROKEN_PRETRAINING[fault]
    change(folder)
    problems = problems_of(folder)
    assert [problem for problem in problems if sentence in problem], problems


def test_every_fault_is_listed(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "nuclei")
    faults = ("no licence", "a truncated checkpoint", "a card without a section", "no fold", "more labels")
    for fault in faults:
        BROKEN[fault][0](folder)
    problems = problems_of(folder)
    for fault in faults:
        assert any(BROKEN[fault][1] in problem for problem in problems), fault


def test_one_fault_is_one_sentence(published, tmp_path):
    for fault in ("no config", "no licence", "other weights", "an optimiser", "a card without a section"):
        folder = shutil.copytree(published, tmp_path / fault / "nuclei")
        BROKEN[fault][0](folder)
        assert len(problems_of(folder)) == 1, fault


RANDOM = {"weights": "random"}
CUBES = ["cfos_neuron_1"]


@pytest.mark.parametrize(
    ("layout", "cases", "ancestor", "certain"),
    [
        ("challenge_zip", CUBES, RANDOM, True),
        ("pairs and bioimage_archive", ["TH_1"], PRETRAINED, True),
        ("pairs", CUBES, RANDOM, False),
        ("delivr", ["microglia_1"], RANDOM, False),
        ("pairs", ["TH_1"], PRETRAINED, None),  # whose brains may be SELMA3D's
        ("pairs", ["TH_1"], {"weights": "given"}, None),
        ("pairs", ["TH_1"], None, None),
        (None, CUBES, RANDOM, None),
        (None, ["TH_1"], RANDOM, False),
        (None, [], RANDOM, None),
    ],
)
def test_the_question_of_the_licence_follows_the_record_of_the_data(layout, cases, ancestor, certain):
    manifest = {"layout": layout, "cases": {case: {"structure": case.rsplit("_", 1)[0]} for case in cases}}
    facts = model(ancestor=ancestor, manifest=manifest, cases=cases)
    assert facts.of_selma3d is certain
    warning = licence_warning(facts, "cc-by-4.0")
    assert ("CC BY-NC" in warning) == (certain is not False)
    assert ("Not known" in warning) == (certain is None)
    assert licence_warning(facts, "cc-by-nc-4.0") == ""
    text = licence_text(licence_named("mit"), "nuclei", None, selma3d=facts.of_selma3d)
    assert ("CC BY-NC" in text) == (certain is not False)


@pytest.mark.parametrize("cases", [["TH_1"], []])
def test_the_data_of_a_pretraining_may_be_selma3ds(cases):
    assert model(kind="pretraining", cases=cases).of_selma3d is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bioimageio", "--description", "a", "--repository", "b/c"], "--description, --repository: a package"),
        (["--bioimageio", "--method", "a"], "--method a: .* --evaluation"),
        (["--bioimageio-python", "python"], "--bioimageio-python: tests a package, .*; leave it out"),
    ],
)
def test_an_option_that_would_be_dropped_is_refused(results, tmp_path, capsys, arguments, words):
    command = ["publish", str(results), "-o", str(tmp_path / "hub"), "--license", "mit", *arguments]
    assert cli.main(command) == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--license", "mit"],
        ["--name", "a"],
        ["--author", "a"],
        ["--description", "a"],
        ["--repository", "a/b"],
        ["--evaluation", "a"],
        ["--method", "a"],
        ["-f", "0"],
        ["-chk", "checkpoint_best.pth"],
        ["--bioimageio"],
        ["--bioimageio-python", "a"],
        ["-o", "a"],
    ],
)
def test_a_check_takes_no_option_of_a_publication(published, capsys, arguments):
    assert cli.main(["publish", "--check", str(published), *arguments]) == 2
    assert f"{arguments[0]}: --check takes a published folder alone" in capsys.readouterr().err.replace("\n", " ")


def test_a_package_for_bioimageio_has_the_warning_of_its_licence(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_selma.sharing.bioimageio.write_package", lambda *_, **__: {})
    command = ["publish", str(results), "-o", str(tmp_path / "p"), "-f", "0", "--bioimageio", "--license", "cc-by-4.0"]
    assert cli.main(command) == 0
    assert "WARNING: CC-BY-4.0 allows commercial use" in capsys.readouterr().out


def test_an_empty_folder_has_every_fault(tmp_path):
    problems = "\n".join(problems_of(tmp_path))
    for name in ("plans.json", "dataset.json", "config.json", "LICENSE", "README.md", "checkpoint_final.pth"):
        assert f"{name} is missing" in problems


def test_the_configuration_is_json_that_says_what_the_model_is(published):
    config = json.loads((published / "config.json").read_text())
    assert config["channels"] == ["stain 0", "stain 1"]
    assert config["classes"] == {"cell": 1, "plaque": 2}
    assert (config["spacing_zyx"], config["spacing_unit"]) == ([5.0, 1.5, 2.0], "um")
    assert (config["epochs"], config["steps_per_epoch"], config["batch_size"]) == ({"0": 11, "1": 11}, 3, 2)
