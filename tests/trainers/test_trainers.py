import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_selma import trainers
from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import bare
from nnunet_selma.pretraining.base import Pretext, pretext_named
from nnunet_selma.pretraining.learning import errors_without
from nnunet_selma.running.json_files import write_json
from nnunet_selma.trainers.base import facts_of, fill_momentum
from nnunet_selma.trainers.fast_layers import FastConv3d
from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer
from nnunet_selma.trainers.pretext_step import Step, freeze_untrained
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from nnunet_selma.trainers.ssl_summary import history_of
from nnunet_selma.trainers.warmup import WarmupPolyLRScheduler
from tests.measures import saved_bytes
from tests.plans import network, plans
from tests.pretraining.tasks import task

DATASET = {
    "channel_names": {"0": "light sheet"},
    "labels": {"background": 0, "structure": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def trainer(kind, folders, **settings):
    content = {**plans(), "continue_training": False, "selma": settings}
    one = kind(content, "3d_fullres", 0, DATASET, torch.device("cpu"))
    (folders.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans_3d_fullres").mkdir(parents=True, exist_ok=True)
    (folders.preprocessed / "Dataset510_SELMA3D" / "nnUNetPlans_3d_fullres" / "a.b2nd").touch()
    return one


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_learning_rate_rises_by_step_and_then_follows_nnunets(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.01)
    scheduler = WarmupPolyLRScheduler(optimizer, 0.01, 100, steps_per_epoch=3, warmup_steps=warmup)
    for step in range(300):
        epoch = step // 3
        if step % 3 == 0:
            scheduler.step(epoch)
        scheduler.before_step()
        poly = 0.01 * (1 - epoch / 100) ** 0.9
        assert optimizer.param_groups[0]["lr"] == pytest.approx(poly * min(1, (step + 1) / (warmup + 1)))


def test_each_group_learns_at_its_rate():
    slow, usual = ({"params": [torch.nn.Parameter(torch.ones(1))], **more} for more in ({"rate": 0.1}, {}))
    optimizer = torch.optim.SGD([slow, usual], 0.01)
    scheduler = WarmupPolyLRScheduler(optimizer, 0.01, 10)
    scheduler.step(5)
    scheduler.before_step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.001 * 0.5**0.9, 0.01 * 0.5**0.9])


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_overflows_in_half_precision_loses_nothing(kind, optimizer, folders):
    section = "pretraining" if kind is SelmaSSLTrainer else "finetuning"
    one = trainer(kind, folders, **{section: {"optimizer": optimizer}})
    one.initialize()
    one.grad_scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    before = {name: value.clone() for name, value in one.network.named_parameters()}
    # memory that was used before, as activations leave it
    del [torch.full_like(value, float("nan")) for value in one.network.parameters()][:]
    one.on_train_epoch_start()
    shape = one.configuration_manager.patch_size
    grids = [shape, [edge // 2 for edge in shape]]
    batch = {
        "data": torch.randn(2, 1, *shape),
        "target": [torch.randint(0, 2, (2, 1, *grid)).float() for grid in grids],
    }
    one.train_step(batch)
    assert all(torch.equal(value, before[name]) for name, value in one.network.named_parameters())
    one.grad_scaler._scale.fill_(1.0)
    for _ in range(3):
        one.train_step(batch)
    assert all(torch.isfinite(value).all() for value in one.network.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in one.network.named_parameters())


def of_epoch(one, losses):
    one.on_epoch_start()
    return [{"loss": torch.tensor(loss) if one.section == "pretraining" else np.float32(loss)} for loss in losses]


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize("fault", ["weights", "momentum", "losses"])
def test_a_training_that_is_lost_ends_with_a_sentence_and_keeps_the_last_good_checkpoint(kind, fault, folders, capsys):
    one = trainer(kind, folders)
    one.initialize()
    good = Path(one.output_folder) / "checkpoint_latest.pth"
    one.save_checkpoint(str(good))
    written = good.read_bytes()
    weights = next(one.network.parameters())
    if fault == "weights":
        weights.data[0] = float("nan")
    if fault == "momentum":
        one.optimizer.state[weights] = {"momentum_buffer": torch.full_like(weights, float("inf"))}
    with pytest.raises(SystemExit) as stopped:
        one.on_train_epoch_end(of_epoch(one, [float("nan") if fault == "losses" else 1.0] * 2))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{fault if fault == 'losses' else 'weights or momentum'} that are not finite" in said
    assert f"{one.section}.learning_rate" in said
    if fault == "weights":
        with pytest.raises(SystemExit):
            one.save_checkpoint(str(good))
    assert good.read_bytes() == written


def with_case(one, folders, fault):
    """A preprocessed case of a trainer that trains on everything, with a fault."""
    folder = Path(one.preprocessed_dataset_folder)
    write_json(folder.parent / "dataset_fingerprint.json", {})
    (folder / "a.b2nd").unlink()
    voxels = np.random.default_rng(0).normal(size=(1, 24, 24, 24)).astype(np.float32)
    if fault == "nan":
        voxels[:] = np.nan
    for ending, content in (("", voxels), ("_seg", np.ones(voxels.shape, np.int8))):
        blosc2.asarray(content, urlpath=str(folder / f"a{ending}.b2nd"))
    write_pickle({"class_locations": {1: [(0, 3, 3, 3)]}, "spacing": [1.0] * 3}, str(folder / "a.pkl"))
    if fault == "cut":
        content = (folder / "a.b2nd").read_bytes()
        (folder / "a.b2nd").write_bytes(content[: len(content) // 2])
    return folder / "a.b2nd"


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize(("fault", "words"), [("cut", "is damaged"), ("nan", "holds numbers that are not finite")])
def test_a_case_that_spoils_the_training_is_named(kind, fault, words, folders, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    run = {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations": 1}
    one = trainer(kind, folders, pretraining=run, finetuning={**run, "pretrained": "none"})
    one.fold = "all"
    path = with_case(one, folders, fault)
    with pytest.raises(SystemExit) as stopped:
        one.run_training()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{path}, which {words}" in said


def test_an_error_that_no_case_explains_stays_what_it_was(folders, monkeypatch):
    one = trainer(SelmaFinetuneTrainer, folders, finetuning={"pretrained": "none"})
    with_case(one, folders, "none")

    def fail():
        raise RuntimeError("of the device")

    monkeypatch.setattr(one, "on_train_start", fail)
    with pytest.raises(RuntimeError, match="of the device"):
        one.run_training()


def cascade(kind, folders):
    """A trainer of the second stage, whose network reads a label beside the image."""
    content = plans()
    content["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    return kind({**content, "continue_training": False}, "second", 0, DATASET, torch.device("cpu"))


def test_the_second_stage_of_a_cascade_is_not_pretrained(folders, capsys):
    with pytest.raises(SystemExit):
        cascade(SelmaSSLTrainer, folders).initialize()
    assert "second is the second stage of a cascade" in capsys.readouterr().err


def test_the_second_stage_of_a_cascade_starts_from_a_pretraining_of_images(folders, tmp_path):
    first = trainer(SelmaFinetuneTrainer, folders)
    first.initialize()
    torch.save(first.network.state_dict(), tmp_path / "first.pt")
    one = cascade(SelmaFinetuneTrainer, folders)
    one.settings = replace(
        one.settings, finetuning=replace(one.settings.finetuning, pretrained=str(tmp_path / "first.pt"))
    )
    one.initialize()
    one.carry_over()
    stem = one.network.encoder.stages[0][0].convs[0].conv.weight
    assert torch.equal(stem[:, :1], first.network.encoder.stages[0][0].convs[0].conv.weight)
    assert not stem[:, 1:].any()
    assert facts_of(one)["input_channels"] == 1


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize("fault", ["none", "nan"])
def test_a_loss_that_is_nan_is_looked_into_once(kind, fault, folders, capsys):
    """On a GPU the scaler leaves such steps out, and the weights stay finite."""
    one = trainer(kind, folders)
    one.initialize()
    path = with_case(one, folders, fault)
    if fault == "nan":
        with pytest.raises(SystemExit):
            one.on_train_epoch_end(of_epoch(one, [float("nan"), 1.0]))
        assert f"because of {path}, which holds numbers that are not finite" in capsys.readouterr().err
    else:
        for _ in range(2):
            one.on_train_epoch_end(of_epoch(one, [float("nan"), 1.0]))
        assert Path(one.log_file).read_text().count("Looking for the cause") == 1


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
def test_a_single_step_that_overflows_ends_nothing(kind, folders):
    one = trainer(kind, folders)
    one.initialize()
    one.on_train_epoch_end(of_epoch(one, [float("inf"), 1.0]))
    assert one.logger.get_value("train_losses", step=-1) == float("inf")


@pytest.mark.parametrize("fused", [True, False])
def test_momentum_of_zeros_changes_no_step(fused):
    weights = []
    for fill in (True, False):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 100))
        optimizer = torch.optim.SGD([weight], 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5, fused=fused)
        if fill:
            fill_momentum(optimizer)
        for step in range(3):
            weight.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize(("kind", "section"), [(SelmaSSLTrainer, "pretraining"), (SelmaFinetuneTrainer, "finetuning")])
def test_settings_of_the_plans_arrive(kind, section, folders):
    one = trainer(
        kind,
        folders,
        **{section: {"epochs": 7, "iterations_per_epoch": 3, "validation_iterations": 2, "save_every": 4}},
    )
    assert (one.num_epochs, one.num_iterations_per_epoch, one.num_val_iterations_per_epoch, one.save_every) == (
        7,
        3,
        2,
        4,
    )
    default = trainer(kind, folders)
    assert (default.num_epochs, default.num_iterations_per_epoch, default.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )


def test_a_setting_that_does_not_exist_ends_with_a_sentence(folders, capsys):
    with pytest.raises(SystemExit) as stopped:
        trainer(SelmaSSLTrainer, folders, pretraining={"epoch": 3})
    assert stopped.value.code == 2
    assert "nnunet-selma: 'epoch' is no setting of pretraining" in capsys.readouterr().err


def test_pretraining_returns_an_image_for_each_input_channel(folders):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    assert one.network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)
    assert network(plans(), input_channels=2)(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_predicting_with_a_pretraining_ends_with_a_sentence(folders, capsys):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    arguments = (one.plans_manager, one.configuration_manager, 1, 2)
    with pytest.raises(SystemExit) as stopped:  # as nnU-Net's predictor asks
        SelmaSSLTrainer.build_network_architecture(*arguments, enable_deep_supervision=False)
    assert stopped.value.code == 2
    assert "segments nothing; fine-tune from it with -tr SelmaFinetuneTrainer" in capsys.readouterr().err


def with_cases(kind, folders, cases, fold=0):
    one = trainer(kind, folders)
    folder = Path(one.preprocessed_dataset_folder)
    for case in cases:
        (folder / f"{case}.b2nd").touch()
    one.fold = fold
    return one


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
def test_few_cases_leave_one_out(kind, folders):
    splits = [with_cases(kind, folders, "abc", fold).do_split() for fold in range(3)]
    assert splits == [(["b", "c"], ["a"]), (["a", "c"], ["b"]), (["a", "b"], ["c"])]
    assert [sorted(cases) for cases in with_cases(kind, folders, "abc", "all").do_split()] == [["a", "b", "c"]] * 2


@pytest.mark.parametrize(
    ("cases", "fold", "words"),
    [
        ("a", 0, "1 case cannot be both trained on and validated; train with fold all"),
        ("ab", 4, "2 cases have the folds 0 to 1"),
    ],
)
def test_folds_that_few_cases_do_not_have_end_with_a_sentence(cases, fold, words, folders, capsys):
    with pytest.raises(SystemExit) as stopped:
        with_cases(SelmaFinetuneTrainer, folders, cases, fold).do_split()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_five_cases_and_splits_of_a_user_are_nnunets(folders):
    one = with_cases(SelmaFinetuneTrainer, folders, "abcde")
    file = Path(one.preprocessed_dataset_folder_base) / "splits_final.json"
    assert one.do_split() == nnUNetTrainer.do_split(one)
    mine = [{"train": ["a"], "val": ["a"]}]
    write_json(file, mine)
    assert one.do_split() == (["a"], ["a"])


def test_a_step_lowers_the_loss_on_one_batch(folders):
    one = trainer(SelmaSSLTrainer, folders, pretraining={"learning_rate": 0.01})
    one.initialize()
    batch = {"data": torch.randn(2, 1, 16, 16, 16) * 0.1 + 1}
    one.network.train()
    one.pretext.reseed(0)
    losses = [float(one.train_step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_a_checkpoint_is_whole_or_absent(folders, tmp_path, monkeypatch):
    one = trainer(SelmaFinetuneTrainer, folders)
    one.initialize()
    one.save_checkpoint(str(tmp_path / "a.pth"))
    assert [p.name for p in tmp_path.glob("*.pth*")] == ["a.pth"]
    before = (tmp_path / "a.pth").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_selma.trainers.base.torch.save", killed)
    with pytest.raises(KeyboardInterrupt):
        one.save_checkpoint(str(tmp_path / "a.pth"))
    assert (tmp_path / "a.pth").read_bytes() == before


@pytest.mark.parametrize("name", [name for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")])
def test_no_parameter_waits_for_a_gradient_under_ddp(name, tmp_path):
    """DistributedDataParallel refuses a second step if a parameter got no gradient in the first."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = network(plans())
        pretext = pretext_named(getattr(trainers, name).pretext_class)(task(net))
        freeze_untrained(net, pretext)
        wrapped = DistributedDataParallel(net)  # nnU-Net's own, which then only serves its checkpoints
        step = DistributedDataParallel(Step(wrapped.module, pretext))
        patches = torch.randn(2, 1, 16, 16, 16)
        for _ in range(3):
            torch.stack(list(step(patches, torch.tensor([0, 3])).values())).sum().backward()
            pretext.after_step(net)
        assert bare(wrapped) is wrapped.module
    finally:
        torch.distributed.destroy_process_group()


def test_trainers_take_the_arguments_nnunet_reads_from_the_signature():
    import inspect

    for kind in (SelmaSSLTrainer, SelmaFinetuneTrainer):
        assert list(inspect.signature(kind.__init__).parameters) == [
            "self",
            "plans",
            "configuration",
            "fold",
            "dataset_json",
            "device",
        ]
    assert os.environ.get("nnUNet_extTrainer") is None


class WithHead(Pretext):
    """A pretext that trains a head and has no diagnostics."""

    def __init__(self, task):
        super().__init__(task)
        self.head = torch.nn.Linear(1, 1)

    def forward(self, network, patches, structures):
        return {"a": self.head(network(patches).mean().reshape(1)).sum() ** 2, "b": network(patches).square().mean()}


OWN = {"pretext": f"{__name__}.WithHead"}


def test_another_pretext_brings_its_own_head_and_no_diagnostics(folders, tmp_path):
    one = trainer(SelmaSSLTrainer, folders, pretraining=OWN)
    one.initialize()
    before = one.pretext.head.weight.detach().clone()
    one.on_epoch_start()
    one.on_train_epoch_start()
    batch = {"data": torch.randn(2, 1, 16, 16, 16)}
    one.on_train_epoch_end([one.train_step(batch)])
    with torch.no_grad():
        one.on_validation_epoch_start()
        one.on_validation_epoch_end([one.validation_step(batch)])
    one.on_epoch_end()
    assert not torch.equal(one.pretext.head.weight, before)
    spread = {"feature_deviation"}  # two samples have no rank worth telling
    assert set(history_of(one)) == {"train_losses", "val_losses", "lrs", "val_a", "val_b", *spread}
    one.save_checkpoint(str(tmp_path / "c.pth"))
    other = trainer(SelmaSSLTrainer, folders, pretraining=OWN)
    other.load_checkpoint(str(tmp_path / "c.pth"))
    assert torch.equal(other.pretext.head.weight, one.pretext.head.weight)


def test_a_full_disk_ends_with_a_sentence_and_leaves_nothing(folders, tmp_path, monkeypatch, capsys):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()

    def full(_, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.torch.save", full)
    with pytest.raises(SystemExit):
        one.save_checkpoint(str(tmp_path / "a.pth"))
    assert "a.pth: the checkpoint could not be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pth*"))


def test_an_error_of_the_device_is_not_called_a_full_disk(folders, tmp_path, monkeypatch):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()

    def out_of_memory(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.torch.save", out_of_memory)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        one.save_checkpoint(str(tmp_path / "a.pth"))
    assert not list(tmp_path.glob("*.pth*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_ends_with_a_sentence(folders, capsys):
    with pytest.raises(SystemExit) as stopped:
        SelmaFinetuneTrainer(plans(), "3d_fullres", 0, DATASET, torch.device("cuda"))
    assert stopped.value.code == 2
    assert "-device cuda was asked for, and PyTorch" in capsys.readouterr().err


def test_results_that_may_not_be_written_end_with_a_sentence(folders, capsys, monkeypatch):
    def read_only(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.maybe_mkdir_p", read_only)
    with pytest.raises(SystemExit) as stopped:
        trainer(SelmaSSLTrainer, folders)
    assert stopped.value.code == 2
    assert "may not be written; nnUNet_results must be a folder of yours" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize("fast", [True, False])
def test_fast_layers_are_a_setting_and_the_log_says_what_was_chosen(kind, fast, folders, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    one = trainer(kind, folders, cpu={"fast_layers": fast})
    one.initialize()
    assert any(type(layer) is FastConv3d for layer in one.network.modules()) == fast
    log = Path(one.log_file).read_text()
    assert "patches loaded between the steps" in log
    assert ("exchanged for faster ones" in log) == fast


def test_the_outcome_of_trials_lies_beside_the_checkpoint(folders):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    Path(one.output_folder).mkdir(parents=True, exist_ok=True)
    one.train_step({"data": torch.randn(2, 1, 16, 16, 16)})
    one.save_checkpoint(str(Path(one.output_folder) / "checkpoint_latest.pth"))
    again = trainer(SelmaSSLTrainer, folders)
    again.initialize()
    assert again.trials == one.trials
    assert len(one.trials.transposed) > 3


class WaitsForTheDevice(TorchDispatchMode):
    """Lists the operations whose result the host would wait for if the tensors were on a GPU."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        if name in self.waiting or any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")])
def test_no_pretraining_step_waits_for_the_device(name, folders):
    one = trainer(getattr(trainers, name), folders, cpu={"fast_layers": False}, structure={"cut_share": 0.5})
    one.initialize()
    batch = {"data": torch.randn(2, 1, 16, 16, 16)}
    one.train_step(batch)  # momentum buffers are made in the first
    with WaitsForTheDevice() as watch:
        output = one.train_step(batch)
    assert watch.found == []
    with WaitsForTheDevice() as watch:
        float(output["loss"])
    assert watch.found == ["_local_scalar_dense"]  # what a wait looks like


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
def test_the_fused_optimiser_is_nnunets(kind, folders):
    one = trainer(kind, folders, pretraining={"optimizer": "sgd"})
    one.initialize()
    groups = one.optimizer.param_groups
    for group in groups:
        assert group["fused"]
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    known = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(known) == sorted(id(p) for p in one.network.parameters() if p.requires_grad)
    assert one.lr_scheduler.optimizer is one.optimizer


def test_loading_processes_are_said_to_nnunet_only_while_it_asks(folders, monkeypatch):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setattr("nnunet_selma.trainers.base.usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    asked = []
    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", lambda _: asked.append(os.environ["nnUNet_n_proc_DA"]))
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    one.get_dataloaders()
    assert asked == ["6"]
    assert "nnUNet_n_proc_DA" not in os.environ


def test_a_checkpoint_of_another_optimiser_goes_on_fused(folders):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    for group in one.optimizer.param_groups:
        group["fused"] = None  # as nnU-Net saves it
    path = str(Path(one.output_folder) / "checkpoint_latest.pth")
    one.save_checkpoint(path)
    again = trainer(SelmaSSLTrainer, folders)
    again.initialize()
    again.load_checkpoint(path)
    assert all(group["fused"] for group in again.optimizer.param_groups)


def test_damaged_trials_end_with_a_sentence(folders, capsys):
    one = trainer(SelmaSSLTrainer, folders)
    Path(one.output_folder).mkdir(parents=True, exist_ok=True)
    (Path(one.output_folder) / "cpu_trials.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        one.initialize()
    assert stopped.value.code == 2
    assert "cpu_trials.json: is no valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "section", "rates"),
    [
        (SelmaSSLTrainer, "pretraining", {"adamw": 1e-3, "sgd": 1e-2}),
        (SelmaFinetuneTrainer, "finetuning", {"adamw": 3e-4, "sgd": 1e-2}),
    ],
)
def test_the_optimiser_is_a_setting(kind, section, rates, folders):
    for name, optimizer in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        one = trainer(kind, folders, **{section: {"optimizer": name, "weight_decay": 0.1}})
        one.initialize()
        assert type(one.optimizer) is optimizer
        assert (one.initial_lr, one.optimizer.param_groups[0]["weight_decay"]) == (rates[name], 0.1)
    one = trainer(kind, folders, **{section: {"learning_rate": 0.002}})
    one.initialize()
    assert one.initial_lr == 0.002


@pytest.mark.parametrize("last", ["structure.StructureInpainting", "byol.Byol", "distillation.SelfDistillation"])
def test_plans_that_name_a_pretext_by_its_earlier_module_work(last, folders):
    one = trainer(SelmaSSLTrainer, folders, pretraining={"pretext": f"nnunet_selma.pretexts.{last}"})
    one.initialize()
    assert type(one.pretext).__module__ == f"nnunet_selma.pretraining.{last.split('.')[0]}"


@pytest.fixture
def compiled_frames(monkeypatch):
    """torch.compile without code generation, and a function that counts what it has compiled since the last call."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()

    def frames():
        count = torch._dynamo.utils.counters["frames"]["ok"]
        torch._dynamo.utils.counters.clear()
        return count

    frames()
    yield frames
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile, which hides it
@pytest.mark.parametrize(
    ("name", "sparse"),
    [
        *((name, False) for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")),
        ("SelmaSSLTrainer", True),
        ("SelmaSSLTrainer_MultiTask", True),
    ],
)
def test_what_a_pretext_calls_is_what_is_compiled(name, sparse, folders, compiled_frames, monkeypatch):
    kind = getattr(trainers, name)
    settings = {"cpu": {"fast_layers": False}, "inpainting": {"sparse": sparse}, "pretraining": {"seed": 0}}
    batch = {"data": torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))}
    losses = []
    for compiles in (False, True):
        monkeypatch.setattr(kind, "_do_i_compile", lambda _, compiles=compiles: compiles)
        one = trainer(kind, folders, **settings)
        one.initialize()
        one.on_epoch_start()
        losses.append(float(one.train_step(batch)["loss"]))
        assert (compiled_frames() > 0) == compiles
        one.train_step(batch)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "torch.compile is used for " in Path(one.log_file).read_text()
    assert not any("_orig_mod" in key for key in one.network.state_dict())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile, which hides it
def test_a_measurement_without_a_map_is_the_same_when_compiled(folders, compiled_frames, monkeypatch):
    errors = []
    for compiles in (False, True):
        monkeypatch.setattr(SelmaSSLTrainer, "_do_i_compile", lambda _, compiles=compiles: compiles)
        one = trainer(SelmaSSLTrainer, folders, cpu={"fast_layers": False}, pretraining={"seed": 0})
        one.initialize()
        patches = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        one.network(patches)
        errors.append(errors_without(one.pretext.eval(), one.network.eval(), [patches]))
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert errors[0]["bottleneck"] != errors[0]["nothing"]


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()]
)
def test_memory_that_runs_out_names_batch_and_patch(kind, error, folders, capsys, monkeypatch):
    one = trainer(kind, folders, finetuning={"pretrained": "none"})

    def fail():
        raise error

    monkeypatch.setattr(one, "on_train_start", fail)
    with pytest.raises(SystemExit) as stopped:
        one.run_training()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "a batch of 1 patches of 16×16×16 voxels" in said
    assert "nnUNetPlans.json" in said


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float16) for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")),
        ("SelmaSSLTrainer", torch.bfloat16),
    ],
)
def test_bright_voxels_overflow_in_no_precision(name, dtype, folders, monkeypatch):
    kind = getattr(trainers, name)
    monkeypatch.setattr(kind, "autocast", lambda _: torch.autocast("cpu", dtype=dtype))
    one = trainer(kind, folders, cpu={"fast_layers": False}, pretraining={"iterations_per_epoch": 1})
    one.initialize()
    one.on_epoch_start()
    patches = torch.randn(1, 1, 16, 16, 16).exp().square() * 20
    patches[0, 0, 3, 3, 3] = 6e4
    output = one.train_step({"data": patches})
    assert torch.isfinite(output["loss"])
    one.on_train_epoch_end([output])
    log = Path(one.log_file).read_text()
    assert ("are beyond ±4096" in log) == (dtype == torch.float16)


def test_raw_counts_in_half_precision_are_refused(folders, monkeypatch, capsys):
    monkeypatch.setattr(SelmaSSLTrainer, "autocast", lambda _: torch.autocast("cpu", dtype=torch.float16))
    one = trainer(SelmaSSLTrainer, folders, cpu={"fast_layers": False}, pretraining={"iterations_per_epoch": 1})
    one.initialize()
    one.on_epoch_start()
    output = one.train_step({"data": torch.rand(1, 1, 16, 16, 16) * 60000})
    with pytest.raises(SystemExit):
        one.on_train_epoch_end([output])
    assert "set gpu.precision=bfloat16" in capsys.readouterr().err


def test_bfloat16_is_a_setting(folders, monkeypatch, capsys):
    before = torch.get_autocast_dtype("cuda")
    one = trainer(SelmaFinetuneTrainer, folders, gpu={"precision": "bfloat16"})
    one.device, one.grad_scaler = torch.device("cuda"), torch.amp.GradScaler("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    try:
        one._set_precision()
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert one.grad_scaler is None
        half = trainer(SelmaFinetuneTrainer, folders)
        half.device = torch.device("cuda")
        half._set_precision()
        assert torch.get_autocast_dtype("cuda") == torch.float16
    finally:
        torch.set_autocast_dtype("cuda", before)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(SelmaError, match=r"set gpu\.precision=half"):
        one._set_precision()


@pytest.mark.parametrize("kind", [SelmaSSLTrainer, SelmaFinetuneTrainer])
def test_runs_with_a_seed_are_the_same_to_the_last_bit(kind, folders, monkeypatch):
    monkeypatch.setattr("nnunet_selma.trainers.fast_layers._seconds", lambda compute: pytest.fail("timed"))
    section = "pretraining" if kind is SelmaSSLTrainer else "finetuning"
    shape = (16, 16, 16)
    states = []
    for _ in range(2):
        one = trainer(kind, folders, **{section: {"seed": 5}})
        one.initialize()
        one.on_epoch_start()
        one.on_train_epoch_start()
        one.train_step(
            {"data": torch.ones(1, 1, *shape), "target": [torch.ones(1, 1, *shape), torch.ones(1, 1, 8, 8, 8)]}
        )
        states.append(one.network.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", [name for name in trainers.TRAINERS if name.startswith("SelmaSSLTrainer")])
def test_a_pretext_keeps_about_as_much_for_the_backward_pass_as_nnunets_step(name):
    """MultiTask looks at two views of each patch at once, and keeps nearly twice as much; docs/performance.md says so."""
    net = network(plans(features=32))
    patches = torch.randn(2, 1, 32, 32, 32)
    stock = saved_bytes(lambda: net(patches).sum())
    pretext = pretext_named(getattr(trainers, name).pretext_class)(task(net, patch=(32, 32, 32)))
    freeze_untrained(net, pretext)
    kept = saved_bytes(lambda: torch.stack(list(pretext(net, patches, torch.tensor([0, 0])).values())).sum())
    assert kept <= (2.0 if name.endswith("MultiTask") else 1.2) * stock
