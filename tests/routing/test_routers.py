import sys

import numpy as np
import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.pretraining.multitask import MultiTask
from nnunet_selma.routing import patches as volume_patches
from nnunet_selma.routing import routers
from nnunet_selma.routing.patches import grid_corners, read_patches, standardise
from nnunet_selma.routing.router_training import RouterTraining, cases_of_classes, random_corners, train_router
from nnunet_selma.routing.routers import DenseNetRouter, class_probabilities, open_router
from nnunet_selma.running.json_files import write_json
from nnunet_selma.structures import PREFIXES
from nnunet_selma.volumes import Volume, open_volume
from tests.conftest import write_image
from tests.plans import network, plans
from tests.pretraining.tasks import task

CPU = torch.device("cpu")
TINY = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}


class Memory(Volume):
    """A volume in memory that counts how often it is read."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype, self.path, self.reads = voxels, voxels.shape, voxels.dtype, "memory", 0

    def _read(self, z, y, x):
        self.reads += 1
        return self.voxels[z, y, x]


def texture(kind, shape, rng):
    """Bright spots, or stripes along y."""
    image = rng.normal(1000, 50, shape)
    if kind == "cfos_neuron":
        image[rng.random(shape) < 0.01] += 4000
    else:
        image += 300 * np.sin(np.arange(shape[2]) * 2 * np.pi / 6)
    return image.astype(np.uint16)


def write_textures(folders, rng, count=3, shape=(40, 36, 33)):
    dataset = folders.raw / "Dataset510_SELMA3D"
    for kind in ("cfos_neuron", "blood_vessel"):
        for number in range(count):
            image = texture(kind, shape, rng)
            write_image(dataset / "imagesTr" / f"{kind}_{number:03d}_0000.nii.gz", image)
            # the second channel would mislead
            write_image(dataset / "imagesTr" / f"{kind}_{number:03d}_0001.nii.gz", image.max() - image)
    write_json(dataset / "dataset.json", {"file_ending": ".nii.gz", "channel_names": {"0": "a", "1": "b"}})
    return dataset


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("shape", "count", "last"),
    [
        ((64, 64, 64), 1, (0, 0, 0)),
        ((30, 64, 65), 2, (0, 0, 1)),
        ((200, 129, 128), 18, (136, 65, 64)),
        ((5000, 5000, 5000), 27, (4936, 4936, 4936)),
    ],
)
def test_the_grid_reaches_from_border_to_border(shape, count, last):
    corners = grid_corners(shape, (64, 64, 64))
    assert len(set(corners)) == len(corners) == count
    assert (corners[0], corners[-1]) == ((0, 0, 0), last)


def test_patches_are_boxes_and_go_on_mirrored(rng):
    volume = Memory(rng.integers(0, 65535, (20, 30, 10), dtype=np.uint16))
    corners = [(0, 0, 0), (4, 14, 0), (4, 2, 0)]
    patches = read_patches(volume, (16, 16, 16), corners)
    assert volume.reads == 2  # the last two share their planes
    for patch, (z, y, x) in zip(patches, sorted(corners), strict=True):
        assert np.array_equal(patch[:, :, :10], volume.voxels[z : z + 16, y : y + 16, x : x + 10])
        assert np.array_equal(patch[:, :, 10:], patch[:, :, 9:3:-1])
    tiny = read_patches(Memory(volume.voxels[:3, :3, :3]), (16, 16, 16), [(0, 0, 0)])
    assert tiny.shape == (1, 16, 16, 16)
    assert set(np.unique(tiny)) == set(np.unique(volume.voxels[:3, :3, :3]))


def test_random_places_lie_inside_and_reach_the_borders(rng):
    corners = np.array(random_corners((40, 20, 34), 32, 400, rng))
    assert corners.min(0).tolist() == [0, 0, 0]
    assert corners.max(0).tolist() == [8, 0, 2]
    assert len(random_corners((40, 40, 40), 32, 5, rng)) == 5


def test_the_patches_of_a_volume_are_normalised_by_all_of_it(rng, monkeypatch):
    monkeypatch.setattr(volume_patches, "_PLANES", 7)
    voxels = rng.integers(0, 65535, (40, 20, 20), dtype=np.uint16)
    seen = []

    class Looking(routers.Router):
        classes, patch_zyx, channels, device = ("a", "b"), (16, 16, 16), 2, CPU

        def probabilities(self, patches):
            seen.append(patches)
            return torch.tensor([[0.25, 0.75]]).repeat(len(patches), 1)

    volumes = [Memory(voxels), Memory(np.full(voxels.shape, 5, np.uint16)), Memory(voxels)]
    assert class_probabilities(Looking(), volumes) == {"a": 0.25, "b": 0.75}
    patches = torch.cat(seen)
    assert patches.shape == (12, 2, 16, 16, 16)
    expected = (voxels[:16, :16, :16] - voxels.mean()) / voxels.std()
    np.testing.assert_allclose(patches[0, 0], expected, rtol=1e-4, atol=1e-5)
    assert float(patches[:, 1].abs().max()) == 0.0
    assert volumes[2].reads == 0


def test_standardised_patches():
    patches = standardise(torch.cat([torch.randn(1, 1, 8, 8, 8) * 9 + 4, torch.full((1, 1, 8, 8, 8), 3.0)]))
    assert float(patches[0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(patches[0].std()) == pytest.approx(1, rel=1e-5)
    assert float(patches[1].abs().max()) == 0.0


def test_cases_are_collected_into_classes():
    cases = ["cfos_neuron_1", "blood_vessel_1", "cfos_neuron_2", "liver_1"]
    assert cases_of_classes(cases) == {
        "blood_vessel": ["blood_vessel_1"],
        "cfos_neuron": ["cfos_neuron_1", "cfos_neuron_2"],
    }
    assert cases_of_classes(cases, ["cfos_neuron", "other"])["other"] == ["blood_vessel_1", "liver_1"]
    with pytest.raises(SelmaError, match="no case to train on for microglia: the cases are named after blood_vessel"):
        cases_of_classes(cases, ["microglia", "other"])
    with pytest.raises(SelmaError, match="at least two classes, and the cases are named after no known structure"):
        cases_of_classes(["liver_1"])


def test_a_router_tells_two_textures_apart_and_comes_back_from_its_file(folders, rng, tmp_path, capsys):
    write_textures(folders, rng)
    file = tmp_path / "router.pt"
    command = ["train-router", "-d", "510", "-o", str(file), "--classes", "other", "cFos", "--patch", "32"]
    assert cli.main([*command, "--steps", "30", "--batch", "6"]) == 0
    out = capsys.readouterr().out
    assert "other: 3 cases, 100% of their patches recognised" in out
    assert "cfos_neuron: 3 cases, 100%" in out
    assert [path.name for path in tmp_path.glob("*router*")] == ["router.pt"]
    router = open_router(file, CPU)
    assert (router.classes, router.patch_zyx, router.channels) == (("other", "cfos_neuron"), (32, 32, 32), 1)
    for kind, number in (("blood_vessel", 0), ("cfos_neuron", 1)):
        path = write_image(tmp_path / f"{kind}.nii.gz", texture(kind, (50, 20, 70), rng))
        probabilities = class_probabilities(router, [open_volume(path)])
        assert sum(probabilities.values()) == pytest.approx(1)
        assert list(probabilities.values())[number] > 0.6
    router.save(tmp_path / "again.pt")
    again = open_router(tmp_path / "again.pt", CPU)
    patches = torch.randn(2, 1, 32, 32, 32)
    assert same_weights(router, again)
    assert torch.equal(router.probabilities(patches), again.probabilities(patches))
    # brightness and contrast of a patch do not count
    torch.testing.assert_close(router.probabilities(7 * patches + 3), router.probabilities(patches))


def test_cases_of_a_fold_are_left_out_and_judged(folders, rng, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_selma.routing.router_training.SMALL", TINY)
    write_textures(folders, rng)
    command = ["train-router", "-d", "510", "-o", str(tmp_path / "router.pt"), "--patch", "32", "--steps", "1"]
    splits = folders.preprocessed / "Dataset510_SELMA3D" / "splits_final.json"
    assert cli.main([*command, "-f", "0"]) == 2
    assert "splits_final.json: is missing, so that fold 0 is not known" in capsys.readouterr().err
    splits.parent.mkdir()
    write_json(splits, [{"train": [], "val": ["cfos_neuron_000", "cfos_neuron_002", "blood_vessel_001", "elsewhere"]}])
    monkeypatch.setattr("nnunet_selma.routing.router_training.class_probabilities", lambda *_: {"blood_vessel": 1.0})
    assert cli.main([*command, "-f", "0"]) == 0
    device, vessels, cells = capsys.readouterr().out.splitlines()[:3]
    assert device.startswith("device: cpu")
    assert vessels.startswith("blood_vessel: 2 cases, ")
    assert vessels.endswith("; 1 of 1 unseen cases recognised")
    assert cells.startswith("cfos_neuron: 1 case, ")
    assert cells.endswith("; 0 of 2 unseen cases recognised")
    for fold in ("1", "x"):
        assert cli.main([*command, "-f", fold]) == 2
        assert "has the folds 0 to 0; give one of them, or all" in capsys.readouterr().err


def test_a_seed_decides_and_every_setting_arrives(folders, rng, monkeypatch):
    monkeypatch.setattr("nnunet_selma.routing.router_training.SMALL", TINY)
    dataset = write_textures(folders, rng, count=1)

    def trained(**settings):
        return train_router(dataset, RouterTraining(**{"patch": 32, "steps": 1, "batch": 2, **settings}), CPU)[0]

    before = torch.random.get_rng_state()
    first = trained()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.classes == ("blood_vessel", "cfos_neuron")
    assert same_weights(first, trained())
    for other in ({"seed": 1}, {"steps": 2}, {"batch": 3}, {"patch": 36}, {"classes": ("cfos_neuron", "other")}):
        assert not same_weights(first, trained(**other))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patch": 16}, "patches of 16 voxels are too small"),
        ({"steps": 0}, "at least 1 step"),
        ({"batch": 1}, "at least 2 patches"),
        ({"classes": ("other",)}, "classes are other: name at least two"),
        ({"classes": ("other", "other")}, "each once"),
    ],
)
def test_what_cannot_be_trained(settings, sentence):
    with pytest.raises(SelmaError, match=sentence):
        RouterTraining(**settings)


def test_what_the_command_refuses(folders, tmp_path, rng, capsys):
    def refused(*options, sentence, output="router.pt"):
        assert cli.main(["train-router", "-d", "510", "-o", str(tmp_path / output), *options]) == 2
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.glob("*router*"))

    refused(sentence="dataset 510: there is none")
    dataset = folders.raw / "Dataset510_SELMA3D"
    dataset.mkdir()
    refused(sentence="dataset.json: is missing; convert the dataset first")
    write_json(dataset / "dataset.json", {"file_ending": ".nii.gz"})
    refused(sentence="imagesTr: holds no images *_0000.nii.gz")
    write_image(dataset / "imagesTr" / "cfos_neuron_1_0000.nii.gz", np.full((8, 8, 8), np.nan, np.float32))
    refused(sentence="at least two classes")
    write_image(dataset / "imagesTr" / "liver_1_0000.nii.gz", np.ones((8, 8, 8), np.uint16))
    refused("--classes", "kidney", "other", sentence="unknown structure 'kidney'")
    refused("--classes", "cfos_neuron", "other", sentence="cfos_neuron_1_0000.nii.gz: holds NaN")
    refused(output="nowhere/router.pt", sentence="give a file in a folder that exists")
    refused(output=".", sentence="give a file in a folder that exists")
    if not torch.cuda.is_available():
        refused("--device", "cuda", sentence="finds none here; take --device cpu")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    router = DenseNetRouter(("cfos_neuron", "other"), (32, 32, 32), TINY, CPU)
    router.save(good)
    content = torch.load(good, weights_only=True)
    assert open_router(good, CPU).classes == ("cfos_neuron", "other")
    bad.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(SelmaError, match=r"bad\.pt: "):
        open_router(bad, CPU)
    foreign = [
        [1, 2],
        {"state_dict": {}},
        {**content, "classes": ["cfos_neuron", "other", "microglia"]},
        {**content, "classes": [1, 2]},
        {**content, "patch": [32, 32]},
        {**content, "state": {}},
        {**content, "architecture": {**TINY, "wings": 2}},
    ]
    for one in foreign:
        torch.save(one, bad)
        with pytest.raises(SelmaError, match=r"bad\.pt: is no router of this version"):
            open_router(bad, CPU)
    key = next(iter(content["state"]))
    torch.save({**content, "state": {**content["state"], key: torch.full_like(content["state"][key], torch.nan)}}, bad)
    with pytest.raises(SelmaError, match=r"bad\.pt: holds numbers that are not finite"):
        open_router(bad, CPU)
    torch.save({"classes": print}, bad)
    with pytest.raises(SelmaError, match=r"bad\.pt: refused, because loading it would run code"):
        open_router(bad, CPU)
    with pytest.raises(SelmaError, match=r"none\.pt: there is no such router"):
        open_router(tmp_path / "none.pt", CPU)


def test_without_monai_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(SelmaError, match=r"pip install 'nnunet-selma\[networks\]'"):
        DenseNetRouter(("cfos_neuron", "other"), (32, 32, 32), TINY, CPU)


def pretraining(folder, content=None, channels=1, **changes):
    """The files of a pretraining with MultiTask, and its network and pretext."""
    content = content or plans()
    torch.manual_seed(0)
    net = network(content, input_channels=channels).eval()
    pretext = MultiTask(task(net, channels=channels))
    pretext.seen[:] = True
    own = folder / "fold_all"
    own.mkdir(parents=True)
    write_json(folder / "plans.json", content)
    names = {str(number): f"stain {number}" for number in range(channels)}
    write_json(folder / "dataset.json", {"channel_names": names, "labels": {"background": 0, "x": 1}})
    checkpoint = {
        "network_weights": net.state_dict(),
        "pretext_state": pretext.state_dict(),
        "init_args": {"configuration": "3d_fullres", "device": CPU},
        "trainer_name": "SelmaSSLTrainer_MultiTask",
        "_best_ema": np.float64(0.5),
    }
    torch.save({**checkpoint, **changes}, own / "checkpoint_final.pth")
    return own, net, pretext


@pytest.mark.parametrize("channels", [1, 2])
def test_the_head_of_a_pretraining_says_what_multitask_says(channels, tmp_path):
    own, net, pretext = pretraining(tmp_path / "model", channels=channels)
    router = open_router(own, CPU)
    assert (router.classes, router.patch_zyx, router.channels) == (PREFIXES, (16, 16, 16), channels)
    patches = torch.randn(3, channels, 16, 16, 16)
    torch.testing.assert_close(router.probabilities(patches), pretext.classify(net, patches), rtol=0, atol=1e-6)


def test_a_pretraining_tells_apart_what_it_has_seen(tmp_path):
    own, net, pretext = pretraining(tmp_path / "model")
    pretext.seen[:] = False
    patches = torch.randn(3, 1, 16, 16, 16)
    pretext.train()(net, patches, torch.tensor([0, -1, 2]))
    checkpoint = torch.load(own / "checkpoint_final.pth", weights_only=False)
    torch.save({**checkpoint, "pretext_state": pretext.state_dict()}, own / "checkpoint_final.pth")
    router = open_router(own, CPU)
    assert router.classes == (PREFIXES[0], PREFIXES[2])
    of_all = pretext.classify(net, patches)[:, [0, 2]]
    torch.testing.assert_close(router.probabilities(patches), of_all / of_all.sum(1, keepdim=True), rtol=0, atol=1e-6)
    earlier = {name: tensor for name, tensor in pretext.state_dict().items() if name != "seen"}
    pretext.load_state_dict(earlier)  # of a version that did not note what was seen
    assert pretext.seen.tolist() == [number in (0, 2) for number in range(len(PREFIXES))]
    pretext.seen[2] = False
    torch.save({**checkpoint, "pretext_state": pretext.state_dict()}, own / "checkpoint_final.pth")
    with pytest.raises(SelmaError, match=f"was trained on {PREFIXES[0]} alone"):
        open_router(own, CPU)


def test_the_axes_of_a_pretraining_are_those_of_its_plans(tmp_path):
    content = plans()
    content["transpose_forward"] = [2, 0, 1]
    content["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 24]
    own, net, pretext = pretraining(tmp_path / "model", content)
    router = open_router(own, CPU)
    assert router.patch_zyx == (16, 24, 8)
    patches = torch.randn(2, 1, 16, 24, 8)
    expected = pretext.classify(net, patches.permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(router.probabilities(patches), expected, rtol=0, atol=1e-6)


def test_pretrainings_that_cannot_route(tmp_path):
    own, _, pretext = pretraining(tmp_path / "a", pretext_state={"steps": torch.zeros(1)})
    with pytest.raises(SelmaError, match=r"checkpoint_final\.pth: holds no classifier of structures"):
        open_router(own, CPU)
    (tmp_path / "a" / "plans.json").unlink()
    with pytest.raises(
        SelmaError, match=r"plans\.json: is missing; a router is a file of nnunet-selma train-router, or"
    ):
        open_router(own, CPU)
    with pytest.raises(SelmaError, match=r"checkpoint_final\.pth: is missing"):
        open_router(tmp_path / "a", CPU)
    state = {**pretext.state_dict(), "structure.weight": torch.zeros(3, 32)}
    own, *_ = pretraining(tmp_path / "b", pretext_state=state)
    with pytest.raises(SelmaError, match=f"tells 3 structures apart, and this version knows {len(PREFIXES)}"):
        open_router(own, CPU)
    own, *_ = pretraining(tmp_path / "c", network_weights={})
    with pytest.raises(SelmaError, match="do not fit the network of"):
        open_router(own, CPU)
    content = plans()
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    own, *_ = pretraining(tmp_path / "d", content)
    with pytest.raises(SelmaError, match=r"a patch of \[16, 16, 16\] and CTNormalization"):
        open_router(own, CPU)
