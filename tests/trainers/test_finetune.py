"""Fine-tuning strategies: what moves in a step and what does not, what checkpoints hold, and how a run goes on."""

import os
import shutil
from functools import wraps
from hashlib import sha256
from inspect import signature
from itertools import count, cycle
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nnunet_selma.finetuning.calibration import Sample
from nnunet_selma.finetuning.lora import LowRank, merged_state
from nnunet_selma.finetuning.losses import TERMS, SumOfTerms
from nnunet_selma.finetuning.pretrained import network_identity
from nnunet_selma.finetuning.probing import read_voxels
from nnunet_selma.networks.parts import bare
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.trainers.fast_layers import FastConv3d
from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from nnunet_selma.trainers.strategies import (
    SelmaFinetuneTrainer_FrozenEncoder,
    SelmaFinetuneTrainer_LoRA,
    SelmaFinetuneTrainer_Unfreezing,
)
from tests.plans import network, plans
from tests.trainers.test_trainers import DATASET, WaitsForTheDevice, trainer

KINDS = [
    SelmaFinetuneTrainer,
    SelmaFinetuneTrainer_FrozenEncoder,
    SelmaFinetuneTrainer_Unfreezing,
    SelmaFinetuneTrainer_LoRA,
]
SEEDED = {"pretrained": "none", "seed": 3}


def started(kind, folders, **finetuning):
    one = trainer(kind, folders, finetuning={**SEEDED, **finetuning})
    one.initialize()
    return one


def batch(seed=0):
    """Two patches, and labels for each of the two outputs."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(2, 1, 16, 16, 16, generator=generator) < 0.3).short()
    patches = torch.randn(2, 1, 16, 16, 16, generator=generator) + labels
    return {"data": patches, "target": [labels, labels[..., ::2, ::2, ::2]]}


def load_batches(one):
    """Stand in for what nnU-Net does before a training: give it batches."""
    one.dataloader_train = (batch(100 + number) for number in count())


def train(one, epochs, steps=2):
    """Train from the trainer's epoch on, as nnU-Net's loop does, without loading and validation."""
    for epoch in epochs:
        one.current_epoch = epoch
        one.on_epoch_start()
        one.on_train_epoch_start()
        for step in range(steps):
            one.train_step(batch(10 * epoch + step))
    one.current_epoch += 1


def moved(one, before):
    """Names of the parameters that are not what they were, to the last bit."""
    now = one.network.named_parameters()
    return {name for name, value in now if not torch.equal(value, before[name])}


def parameters(one):
    return {name: value.detach().clone() for name, value in one.network.named_parameters()}


def in_encoder(names):
    return {name for name in names if name.startswith("encoder.")}


def without_use(one):
    """Parameters that get no gradient: the head of the coarsest output, whose weight in the loss is zero."""
    return {name for name, _ in one.network.named_parameters() if name.startswith("decoder.seg_layers.0")}


def naming(monkeypatch, part):
    """Let networks say that this part of them was pretrained."""
    build = nnUNetTrainer.build_network_architecture

    @wraps(build)  # nnU-Net reads its signature
    def naming_it(*arguments):
        net = build(*arguments)
        net.pretrained_part = part
        return net

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(naming_it))


def saved(one, name="checkpoint_latest.pth"):
    path = str(Path(one.output_folder) / name)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    one.current_epoch -= 1  # nnU-Net saves before it counts, and adds one itself
    one.save_checkpoint(path)
    one.current_epoch += 1
    return path


# --- losses in the trainer


def test_the_default_loss_is_nnunets(folders):
    one = started(SelmaFinetuneTrainer, folders)
    stock = nnUNetTrainer._build_loss(one)
    assert type(one.loss) is type(stock)
    assert type(one.loss.loss) is type(stock.loss)


def test_another_loss_is_weighted_over_the_outputs_as_nnunet_does(folders):
    one = started(SelmaFinetuneTrainer, folders, loss="dice")
    assert type(one.loss) is DeepSupervisionWrapper
    assert type(one.loss.loss) is SumOfTerms
    assert one.loss.weight_factors == nnUNetTrainer._build_loss(one).weight_factors
    one.is_ddp = True  # then no output may be without a weight
    assert min(one._build_loss().weight_factors) > 0
    one.is_ddp, one.enable_deep_supervision = False, False
    assert type(one._build_loss()) is SumOfTerms


def test_labels_that_are_regions_are_refused_with_a_sentence(folders, capsys, monkeypatch):
    regions = {"background": 0, "cell": [1, 2], "core": 2}
    monkeypatch.setitem(DATASET, "labels", regions)
    monkeypatch.setitem(DATASET, "regions_class_order", [1, 2])
    started(SelmaFinetuneTrainer, folders)
    with pytest.raises(SystemExit) as stopped:
        started(SelmaFinetuneTrainer, folders, loss="dice_focal")
    assert stopped.value.code == 2
    assert "this dataset has regions; set it to dice_ce" in capsys.readouterr().err


def test_the_ignore_label_of_the_dataset_arrives(folders, monkeypatch):
    monkeypatch.setitem(DATASET, "labels", {"background": 0, "structure": 1, "ignore": 2})
    one = started(SelmaFinetuneTrainer, folders, loss="dice_ce_cldice")
    patches, labels = torch.randn(1, 2, 16, 16, 16), torch.full((1, 1, 16, 16, 16), 2)
    assert one.loss.loss.ignore_label == 2
    assert float(one.loss([patches], [labels])) == float(one.loss([-patches], [labels]))


@pytest.mark.parametrize(("loss", "kind"), zip(TERMS, cycle(KINDS)))
def test_every_strategy_and_every_loss_steps(loss, kind, folders):
    assert len(TERMS) >= len(KINDS)  # so that every strategy has its turn
    one = started(kind, folders, loss=loss)
    before = parameters(one)
    one.on_train_epoch_start()
    assert torch.isfinite(torch.as_tensor(one.train_step(batch())["loss"]))
    names = moved(one, before)
    assert {name for name in names if name.startswith("decoder.")}
    assert all(value.isfinite().all() for value in one.network.state_dict().values())
    one.network.eval()
    with torch.no_grad():
        assert "tp_hard" in one.validation_step(batch())


# with an ignore label nnU-Net's own loss asks whether any voxel is known, and waits for the answer
@pytest.mark.parametrize(
    ("loss", "ignore"), [*((loss, False) for loss in TERMS), *((loss, True) for loss in TERMS if loss != "dice_ce")]
)
def test_no_loss_waits_for_the_device(loss, ignore, folders, monkeypatch):
    if ignore:
        monkeypatch.setitem(DATASET, "labels", {"background": 0, "structure": 1, "ignore": 2})
    one = started(SelmaFinetuneTrainer, folders, loss=loss)
    one.train_step(batch())
    with WaitsForTheDevice() as watch:
        one.loss(one.network(batch()["data"]), batch()["target"]).backward()
    assert watch.found == []


# --- what a strategy trains


def test_fine_tuning_trains_everything(folders):
    one = started(SelmaFinetuneTrainer, folders)
    before = parameters(one)
    train(one, [0])
    # the coarsest output has no weight; its head decays only where it has a gradient
    assert moved(one, before) == set(before) - without_use(one)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_encoder_does_not_move_by_a_bit_and_is_not_the_optimisers(optimizer, folders):
    one = started(SelmaFinetuneTrainer_FrozenEncoder, folders, optimizer=optimizer, weight_decay=0.1)
    before = parameters(one)
    train(one, range(3))
    assert moved(one, before) == set(before) - in_encoder(before) - without_use(one)
    known = {id(parameter) for group in one.optimizer.param_groups for parameter in group["params"]}
    encoder = {id(parameter) for parameter in one.network.encoder.parameters()}
    assert known == {id(parameter) for parameter in one.network.parameters()} - encoder
    assert all(parameter.grad is None for parameter in one.network.encoder.parameters())


def test_running_statistics_are_frozen_too(folders):
    for kind in (SelmaFinetuneTrainer_FrozenEncoder, SelmaFinetuneTrainer_Unfreezing):
        one = started(kind, folders)
        one.on_train_epoch_start()
        assert not any(layer.training for layer in one.network.encoder.modules())
        assert all(layer.training for layer in one.network.decoder.seg_layers)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_unfreezing_moves_nothing_of_the_encoder_before_the_switch_and_all_after(optimizer, folders):
    one = started(SelmaFinetuneTrainer_Unfreezing, folders, frozen_epochs=2, optimizer=optimizer, weight_decay=0.1)
    before = parameters(one)
    train(one, [0, 1])
    assert moved(one, before) == set(before) - in_encoder(before) - without_use(one)
    states = [one.optimizer.state.get(parameter, {}) for parameter in one.network.encoder.parameters()]
    assert not any(value.any() for state in states for value in state.values() if isinstance(value, torch.Tensor))
    before = parameters(one)
    train(one, [2], steps=1)
    assert moved(one, before) == set(before) - without_use(one)
    assert all(layer.training for layer in one.network.modules())
    assert "the whole network is trained" in Path(one.log_file).read_text()


@pytest.mark.parametrize("epochs", [(None, 1000, 100), (None, 3, 1), (7, 20, 7), (0, 20, 0)])
def test_a_tenth_of_all_epochs_is_frozen_unless_set(epochs, folders):
    setting, total, expected = epochs
    one = trainer(SelmaFinetuneTrainer_Unfreezing, folders, finetuning={"frozen_epochs": setting, "epochs": total})
    assert one.frozen_epochs() == expected


def test_a_network_that_would_stay_frozen_is_refused_with_a_sentence(folders, capsys):
    with pytest.raises(SystemExit):
        started(SelmaFinetuneTrainer_Unfreezing, folders, frozen_epochs=5, epochs=5)
    assert "frozen_epochs is 5 of 5 epochs, so that nothing is ever unfrozen" in capsys.readouterr().err


def test_a_network_without_a_pretrained_part_is_refused_with_a_sentence(folders, capsys, monkeypatch):
    naming(monkeypatch, "backbone")
    for kind in KINDS[1:]:
        with pytest.raises(SystemExit):
            started(kind, folders)
        assert "PlainConvUNet has no part 'backbone'" in capsys.readouterr().err


def test_the_part_that_a_network_names_is_the_one_that_is_frozen(folders, monkeypatch):
    naming(monkeypatch, "encoder.stages.0")
    one = started(SelmaFinetuneTrainer_FrozenEncoder, folders)
    frozen = {name for name, parameter in one.network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in one.network.named_parameters() if name.startswith("encoder.stages.0.")}


def test_lora_trains_the_factors_and_all_but_the_weights_they_adapt(folders):
    one = started(SelmaFinetuneTrainer_LoRA, folders, lora_rank=2, lora_alpha=6, weight_decay=0.1)
    before = parameters(one)
    adapters = [layer for layer in one.network.modules() if isinstance(layer, LowRank)]
    assert len(adapters) == 6
    assert {(adapter.up.shape[1], adapter.scale) for adapter in adapters} == {(2, 3.0)}
    train(one, [0])
    frozen = {name for name in before if name.endswith("parametrizations.weight.original")}
    assert in_encoder(frozen) == frozen
    assert moved(one, before) == set(before) - frozen - without_use(one)
    known = {id(parameter) for group in one.optimizer.param_groups for parameter in group["params"]}
    assert known == {id(value) for name, value in one.network.named_parameters() if name not in frozen}
    assert "6 layers adapted at rank 2" in Path(one.log_file).read_text()


def test_lora_starts_as_the_pretrained_network(folders):
    plain, one = (started(kind, folders) for kind in (SelmaFinetuneTrainer, SelmaFinetuneTrainer_LoRA))
    assert all(torch.equal(value, plain.network.state_dict()[key]) for key, value in one.network.state_dict().items())
    patches = batch()["data"]
    assert all(torch.equal(a, b) for a, b in zip(one.network(patches), plain.network(patches), strict=True))


def test_adapted_layers_are_fast_and_share_the_trials_that_are_kept(folders):
    one = started(SelmaFinetuneTrainer_LoRA, folders)
    fast = [layer for layer in one.network.modules() if isinstance(layer, FastConv3d)]
    adapted = [layer for layer in fast if type(layer) is not FastConv3d]
    assert len(adapted) == 6
    assert all(layer.trials is one.trials for layer in fast)
    slow = trainer(SelmaFinetuneTrainer_LoRA, folders, finetuning=SEEDED, cpu={"fast_layers": False})
    slow.initialize()
    assert not any(isinstance(layer, FastConv3d) for layer in slow.network.modules())


# --- learning rate


def test_the_learning_rate_rises_again_when_all_is_trained(folders):
    one = started(
        SelmaFinetuneTrainer_Unfreezing, folders, epochs=40, frozen_epochs=10, iterations_per_epoch=2, warmup_steps=6
    )
    rates = []
    for epoch in range(40):
        one.lr_scheduler.step(epoch)
        for _ in range(2):
            one.lr_scheduler.before_step()
            rates.append(one.optimizer.param_groups[0]["lr"])
    for step, rate in enumerate(rates):
        since = step if step < 20 else step - 20
        assert rate == pytest.approx(0.01 * (1 - step // 2 / 40) ** 0.9 * min(1, (since + 1) / 7))
    assert rates[20] < rates[19] / 3


# --- pretrained weights, checkpoints, going on


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of the same network, and its weights."""
    torch.manual_seed(11)
    net = network(plans(), pretraining=False)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "pretrained.pth"
    torch.save({"network_weights": net.state_dict()}, path)
    return str(path), net.state_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["plans", "nnU-Net"])
def test_pretrained_weights_arrive_whatever_the_strategy(kind, way, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    path, weights = pretrained
    one = started(kind, folders, pretrained=path if way == "plans" else "none")
    if way == "nnU-Net":
        load_pretrained_weights(one.network, path)
    one.on_train_start()
    for key, value in one.network.state_dict().items():
        assert torch.equal(value, weights[key]) == (".seg_layers." not in key)
    said = "100.0% of the parameters" if way == "plans" else "nothing is carried over"
    assert said in Path(one.log_file).read_text()


def finished_pretraining(folders, name, pretrained, age, **facts):
    fold = folders.results / name / "SelmaSSLTrainer__p__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    shutil.copy(pretrained[0], fold / "checkpoint_final.pth")
    write_json(
        fold / "ssl_summary.json", {"network": network_identity(plans()["configurations"]["3d_fullres"]), **facts}
    )
    os.utime(fold / "ssl_summary.json", (1e9 - age, 1e9 - age))
    return fold / "checkpoint_final.pth"


def test_all_folds_start_from_the_pretraining_of_the_first(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    first = finished_pretraining(folders, "Dataset500_a", pretrained, age=9)
    one = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    one.on_train_start()
    saved(one, "checkpoint_final.pth")
    finished_pretraining(folders, "Dataset501_b", pretrained, age=1)
    other = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    other.output_folder = str(Path(one.output_folder).parent / "fold_1")
    other.on_train_start()
    log = Path(other.log_file).read_text()
    assert f"The other folds started from {first.resolve()}, and so does this one." in log


def test_other_pretrainings_and_what_differs_are_listed(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    older = finished_pretraining(folders, "Dataset500_a", pretrained, age=9)
    newer = finished_pretraining(folders, "Dataset501_b", pretrained, age=1, input_channels=2)
    one = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    one.on_train_start()
    log = Path(one.log_file).read_text()
    assert f"WARNING: {newer} is taken, of 2 finished pretrainings; the others" in log
    assert f"\n  {older}" in log
    assert "WARNING: pretraining had the number of channels 2, this training has 1" in log


PHYSICAL = {"spacing": [5.0, 1.6, 1.6], "original_spacing": [5.0, 1.6, 1.6]}


def test_a_pretraining_is_judged_alike_whether_it_was_found_or_named(folders, pretrained, monkeypatch, capsys):
    """Found: the next one that suits is taken. Named, or the only one: refused, before anything is changed."""
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    physical = finished_pretraining(folders, "Dataset501_b", pretrained, age=1, **PHYSICAL)
    for setting in (str(physical), "newest"):
        fine_tuned = started(SelmaFinetuneTrainer, folders, pretrained=setting)
        before = parameters(fine_tuned)
        with pytest.raises(SystemExit):
            fine_tuned.on_train_start()
        assert f"{physical}: pretraining had the voxel size 5 × 1.6 × 1.6, this training has 1 × 1 × 1" in (
            capsys.readouterr().err
        )
        assert moved(fine_tuned, before) == set()
    suits = finished_pretraining(folders, "Dataset500_a", pretrained, age=9)
    fine_tuned = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    fine_tuned.on_train_start()
    log = Path(fine_tuned.log_file).read_text()
    assert f"WARNING: not taken: {physical}" in log
    assert f"Pretrained weights from {suits}" in log


def test_a_pretraining_of_another_network_is_found_if_its_weights_fit(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    path = finished_pretraining(folders, "Dataset500_a", pretrained, age=1)
    summary = read_json(path.parent / "ssl_summary.json")
    summary["network"]["arch_kwargs"]["strides"][1] = [1, 2, 2]
    write_json(path.parent / "ssl_summary.json", summary)
    fine_tuned = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    fine_tuned.on_train_start()
    assert "100.0% of the parameters" in Path(fine_tuned.log_file).read_text()
    torch.save({"network_weights": {"encoder.x": torch.ones(3)}}, path)
    with pytest.raises(SystemExit):
        started(SelmaFinetuneTrainer, folders, pretrained="newest").on_train_start()


# --- the ancestor


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_records_its_ancestor_and_a_run_that_goes_on_keeps_it(kind, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    facts = {"pretext": "MaskedInpainting", "dataset": "Dataset500_a", "epochs": 7}
    path = finished_pretraining(folders, "Dataset500_a", pretrained, age=1, **facts)
    digest = sha256(path.read_bytes()).hexdigest()
    fine_tuned = started(kind, folders, pretrained="newest")
    fine_tuned.on_train_start()
    assert f"Ancestor: {path}, by MaskedInpainting on Dataset500_a, 7 epoch(s), SHA-256 {digest}" in (
        Path(fine_tuned.log_file).read_text()
    )
    train(fine_tuned, [0], steps=1)
    checkpoint = saved(fine_tuned)
    ancestor = torch.load(checkpoint, weights_only=False)["selma_ancestor"]
    assert ancestor["weights"] == "pretrained"
    assert (ancestor["path"], ancestor["sha256"]) == (str(path), digest)
    assert {key: ancestor[key] for key in facts} == facts
    path.unlink()
    again = started(kind, folders, pretrained="newest")
    again.load_checkpoint(checkpoint)
    again.on_train_start()
    train(again, [1], steps=1)
    assert torch.load(saved(again), weights_only=False)["selma_ancestor"] == ancestor


def test_weights_that_come_from_no_pretraining_are_recorded_as_such(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    random, given = started(SelmaFinetuneTrainer, folders), started(SelmaFinetuneTrainer, folders)
    load_pretrained_weights(given.network, pretrained[0])
    for one, weights in ((random, "random"), (given, "given")):
        one.on_train_start()
        content = torch.load(saved(one), weights_only=False)
        assert content["selma_ancestor"] == {"weights": weights}
    del content["selma_ancestor"]  # as earlier versions wrote it
    torch.save(content, Path(given.output_folder) / "checkpoint_latest.pth")
    again = started(SelmaFinetuneTrainer, folders)
    again.load_checkpoint(str(Path(given.output_folder) / "checkpoint_latest.pth"))
    again.on_train_start()
    assert torch.load(saved(again), weights_only=False)["selma_ancestor"] == {"weights": "unknown"}


def test_nnunet_predicts_with_a_checkpoint_that_records_its_ancestor(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    finished_pretraining(folders, "Dataset500_a", pretrained, age=1)
    fine_tuned = started(SelmaFinetuneTrainer, folders, pretrained="newest")
    fine_tuned.on_train_start()
    saved(fine_tuned, "checkpoint_final.pth")
    model = Path(fine_tuned.output_folder).parent
    write_json(model / "plans.json", {**plans(), "continue_training": False})
    write_json(model / "dataset.json", DATASET)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    weights = bare(fine_tuned.network).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in predictor.network.state_dict().items())


def with_spacing(one, spacing):
    """A preprocessed case that had this voxel size."""
    write_pickle({"spacing": spacing}, str(Path(one.preprocessed_dataset_folder) / "a.pkl"))


@pytest.mark.parametrize("kind", [SelmaFinetuneTrainer, SelmaSSLTrainer])
def test_plans_of_a_dataset_in_another_unit_are_refused_before_the_training(kind, folders, monkeypatch, capsys):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    monkeypatch.setattr("nnunet_selma.trainers.ssl.shapes_of_cases", lambda *_: [])
    fine_tuned = trainer(kind, folders, finetuning=SEEDED)
    with_spacing(fine_tuned, [5.0, 1.6, 1.6])
    with pytest.raises(SystemExit):
        fine_tuned.on_train_start()
    assert "voxel size of 5 × 1.6 × 1.6, and the plans nnUNetPlans are for 1 × 1 × 1" in capsys.readouterr().err
    with_spacing(fine_tuned, [1.0, 1.0, 1.0])
    fine_tuned.on_train_start()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_that_of_a_plain_network(kind, folders):
    one = started(kind, folders)
    train(one, [0])
    content = torch.load(saved(one), weights_only=False)
    assert content["trainer_name"] == "nnUNetTrainer"
    plain = network(plans(), pretraining=False)
    plain.load_state_dict(content["network_weights"])
    for net in (plain, one.network):
        net.eval()
    for ours, own in zip(plain(batch()["data"]), one.network(batch()["data"]), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)  # the trainer's layers are the fast ones


def test_a_subclass_with_its_own_network_keeps_its_name(folders):
    class WithGelu(SelmaFinetuneTrainer):
        @staticmethod
        def build_network_architecture(*arguments, **more):
            return nnUNetTrainer.build_network_architecture(*arguments, **more)

    class WithShortEpochs(SelmaFinetuneTrainer):
        pass

    WithGelu.build_network_architecture.__signature__ = signature(nnUNetTrainer.build_network_architecture)
    for kind, name in ((WithGelu, "WithGelu"), (WithShortEpochs, "nnUNetTrainer")):
        content = torch.load(saved(started(kind, folders)), weights_only=False)
        assert content["trainer_name"] == name


def test_a_lora_checkpoint_holds_each_tensor_once(folders):
    plain, one = (started(kind, folders) for kind in (SelmaFinetuneTrainer, SelmaFinetuneTrainer_LoRA))
    sizes = []
    for each in (plain, one):
        train(each, [0], steps=1)
        content = torch.load(saved(each), weights_only=False)
        tensors = [*content["network_weights"].values()]
        tensors += [tensor for parts in content.get("lora_state", {}).values() for tensor in parts.values()]
        sizes.append(sum({tensor.data_ptr(): tensor.numel() for tensor in tensors}.values()))
    adapters = [layer for layer in one.network.modules() if hasattr(layer, "parametrizations")]
    extra = sum(sum(p.numel() for p in layer.parametrizations.parameters()) for layer in adapters)
    assert sizes[1] == sizes[0] + extra


@pytest.mark.parametrize(
    ("kind", "optimizer"), [*((kind, "sgd") for kind in KINDS), *((kind, "adamw") for kind in KINDS[2:])]
)
def test_a_run_goes_on_exactly(kind, optimizer, folders):
    """Unfreezing switches after the first epoch: one break lies there, the other behind it."""
    settings = {"frozen_epochs": 1, "epochs": 10, "optimizer": optimizer, "lora_rank": 3}
    whole = started(kind, folders, **settings)
    breaks, checkpoints = ((1, 2) if kind is SelmaFinetuneTrainer_Unfreezing else (1,)), {}
    for epoch in range(3):
        train(whole, [epoch], steps=1)
        if epoch + 1 in breaks:
            checkpoints[epoch + 1] = saved(whole, f"{epoch}.pth")
    for broken_after in breaks:
        again = started(kind, folders, **settings)
        again.load_checkpoint(checkpoints[broken_after])
        assert again.current_epoch == broken_after
        train(again, range(broken_after, 3), steps=1)
        assert moved(again, parameters(whole)) == set()
        ours, theirs = again.optimizer.state_dict(), whole.optimizer.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for key, state in theirs["state"].items():
            assert all(torch.equal(ours["state"][key][name], value) for name, value in state.items())


def test_a_frozen_run_goes_on_before_the_switch(folders):
    settings = {"frozen_epochs": 2, "epochs": 10}
    whole = started(SelmaFinetuneTrainer_Unfreezing, folders, **settings)
    before = parameters(whole)
    train(whole, [0])
    path = saved(whole)
    again = started(SelmaFinetuneTrainer_Unfreezing, folders, **settings)
    again.load_checkpoint(path)
    train(again, [1])
    assert in_encoder(moved(again, before)) == set()
    train(again, [2], steps=1)
    train(whole, [1])
    train(whole, [2], steps=1)
    assert moved(again, parameters(whole)) == set()
    assert in_encoder(moved(again, before)) == in_encoder(before)


@pytest.mark.parametrize("kind", [SelmaFinetuneTrainer_FrozenEncoder, SelmaFinetuneTrainer_LoRA])
def test_a_run_that_goes_on_carries_nothing_over(kind, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(kind, folders, pretrained=pretrained[0])
    one.on_train_start()
    train(one, [0], steps=1)
    path, before = saved(one), parameters(one)
    again = started(kind, folders, pretrained=pretrained[0])
    again.load_checkpoint(path)
    again.on_train_start()
    assert moved(again, before) == set()
    assert "nothing is carried over" in Path(again.log_file).read_text()


def test_a_frozen_part_that_stayed_random_does_not_look_like_a_new_run(folders, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    partly = {key: value for key, value in pretrained[1].items() if ".stages.0.0.convs.0" not in key}
    torch.save({"network_weights": partly}, tmp_path / "partly.pth")
    settings = {"pretrained": str(tmp_path / "partly.pth")}
    one = started(SelmaFinetuneTrainer_FrozenEncoder, folders, **settings)
    one.on_train_start()
    train(one, [0], steps=1)
    path, before = saved(one), parameters(one)
    again = started(SelmaFinetuneTrainer_FrozenEncoder, folders, **settings)
    again.load_checkpoint(path)
    again.on_train_start()
    assert moved(again, before) == set()


def test_another_rank_ends_with_a_sentence(folders, capsys):
    path = saved(started(SelmaFinetuneTrainer_LoRA, folders, lora_rank=2))
    again = started(SelmaFinetuneTrainer_LoRA, folders, lora_rank=3, optimizer="sgd")
    with pytest.raises(SystemExit) as stopped:
        again.load_checkpoint(path)
    assert stopped.value.code == 2
    assert "go on with the finetuning.lora_rank that the run began with" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_wait_for_no_parameter(kind, folders, tmp_path):
    """DistributedDataParallel refuses a second step if a parameter got no gradient in the first."""
    # fast layers are for a CPU, where nnU-Net never starts several processes
    one = trainer(kind, folders, finetuning={**SEEDED, "frozen_epochs": 1, "epochs": 3}, cpu={"fast_layers": False})
    one.initialize()
    before = parameters(one)
    one.loss.weight_factors = (0.9, 0.1)  # nnU-Net leaves no output without a weight then
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        one.network = DistributedDataParallel(one.network)
        train(one, [0, 1])
        assert set(merged_state(bare(one.network))) == set(network(plans(), pretraining=False).state_dict())
        one.network = bare(one.network)
    finally:
        torch.distributed.destroy_process_group()
    frozen = {name for name, parameter in one.network.named_parameters() if not parameter.requires_grad}
    assert moved(one, before) == set(before) - frozen


# --- the end


@pytest.mark.parametrize("wish", [True, False])
def test_the_final_validation_is_a_setting(wish, folders, monkeypatch):
    asked = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: asked.append(True))
    one = started(SelmaFinetuneTrainer, folders, final_validation=wish)
    one.perform_actual_validation()
    assert asked == [True] * wish
    assert ("validation is left out" in Path(one.log_file).read_text()) != wish


def test_a_fold_that_was_not_validated_has_no_scores_that_nnunet_would_take(folders, tmp_path):
    """nnUNetv2_export_model_to_zip demands the summary; nnUNetv2_find_best_configuration copies the predictions of all folds."""
    one = started(SelmaFinetuneTrainer, folders, final_validation=False)
    one.perform_actual_validation()
    fold = Path(one.output_folder)
    assert "not_validated" in read_json(fold / "validation" / "summary.json")
    with pytest.raises(KeyError):
        load_summary_json(str(fold / "validation" / "summary.json"))
    shutil.copytree(fold, fold.with_name("fold_1"))
    write_json(fold.parent / "plans.json", plans())
    write_json(fold.parent / "dataset.json", DATASET)
    with pytest.raises(RuntimeError, match="not_validated"):
        accumulate_cv_results(str(fold.parent), str(tmp_path / "merged"), (0, 1), 1)


@pytest.mark.parametrize("trained", [True, False])
def test_scores_of_the_same_weights_are_kept(trained, folders):
    one = started(SelmaFinetuneTrainer, folders, final_validation=False)
    summary = Path(one.output_folder) / "validation" / "summary.json"
    summary.parent.mkdir()
    write_json(summary, {"foreground_mean": {"Dice": 0.5}})
    one.has_trained = trained
    one.perform_actual_validation()
    assert ("foreground_mean" in read_json(summary)) != trained


def test_a_validation_clears_the_note_of_a_missing_one(folders, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    started(SelmaFinetuneTrainer, folders, final_validation=False).perform_actual_validation()
    one = started(SelmaFinetuneTrainer, folders)
    assert one.missing_validation.is_file()
    one.perform_actual_validation()
    assert not one.missing_validation.exists()


@pytest.mark.parametrize("name", ["frozen_epochs", "lora_rank", "lora_alpha"])
def test_settings_that_make_no_sense_end_with_a_sentence(name, folders, capsys):
    with pytest.raises(SystemExit):
        trainer(SelmaFinetuneTrainer, folders, finetuning={name: -1})
    assert f"finetuning.{name} is -1; give" in capsys.readouterr().err


# --- what was carried over learns at a rate of its own, and the threshold is fitted


@pytest.mark.parametrize("carry", ["all", "all_but_last_step", "encoder"])
def test_what_was_carried_over_learns_more_slowly(carry, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    path, _ = pretrained
    rates = {"encoder_rate": 0.1, "decoder_rate": 0.5, "warmup_steps": 0}
    one = started(SelmaFinetuneTrainer, folders, pretrained=path, carry=carry, **rates)
    one.on_train_start()
    one.on_train_epoch_start()
    one.train_step(batch())
    rates = {group["part"]: group["lr"] / one.initial_lr for group in one.optimizer.param_groups}
    assert rates == pytest.approx(
        {
            "encoder": 0.1,
            "decoder": 1.0 if carry == "encoder" else 0.5,
            "last step": 0.5 if carry == "all" else 1.0,
            "heads": 1.0,
        }
    )
    again = started(SelmaFinetuneTrainer, folders, pretrained="none", encoder_rate=0.1)
    again.load_checkpoint(saved(one))
    assert [group["rate"] for group in again.optimizer.param_groups] == [
        group["rate"] for group in one.optimizer.param_groups
    ]


def test_random_weights_learn_at_the_full_rate(folders, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer, folders, encoder_rate=0.1, decoder_rate=0.1, warmup_steps=0)
    one.on_train_start()
    one.on_train_epoch_start()
    assert {group["lr"] for group in one.optimizer.param_groups} == {one.initial_lr}


@pytest.mark.parametrize("way", ["plans", "nnU-Net"])
def test_new_heads_read_what_was_carried_over_from_the_first_step_on(way, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer, folders, pretrained=pretrained[0] if way == "plans" else "none")
    if way == "nnU-Net":
        load_pretrained_weights(one.network, pretrained[0])

    def losses():
        fresh = batch(7)
        with torch.no_grad():
            outputs = one.network(fresh["data"])
        pairs = zip(outputs, fresh["target"], strict=True)
        return [float(functional.cross_entropy(output, target[:, 0].long())) for output, target in pairs]

    before = losses()
    one.on_train_start()
    assert all(after < random - 0.01 for after, random in zip(losses(), before, strict=True))
    assert "The segmentation heads were fitted to what was carried over" in Path(one.log_file).read_text()


def test_the_heads_of_a_fine_tuned_model_are_kept_and_learn_slowly(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    path, weights = pretrained
    one = started(SelmaFinetuneTrainer, folders, pretrained=path, head="keep", decoder_rate=0.1)
    one.on_train_start()
    assert all(torch.equal(value, weights[key]) for key, value in one.network.state_dict().items())
    assert {group["part"]: group["rate"] for group in one.optimizer.param_groups}["heads"] == 0.1
    log = Path(one.log_file).read_text()
    assert "were fitted" not in log
    assert "start from random weights" not in log


@pytest.mark.parametrize("settings", [{"fit_head": False}, {"carry": "encoder"}, {"pretrained": "none"}])
def test_heads_that_read_random_features_stay_random(settings, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer, folders, **{"pretrained": pretrained[0], **settings})
    before = {name for name in parameters(one) if ".seg_layers." in name}, parameters(one)
    one.on_train_start()
    assert before[0]
    assert not moved(one, before[1]) & before[0]


def test_batches_of_one_class_leave_the_heads_random_and_say_so(folders, pretrained, monkeypatch):
    def load_background(one):
        load_batches(one)
        one.dataloader_train = (
            {**loaded, "target": [0 * target for target in loaded["target"]]} for loaded in one.dataloader_train
        )

    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_background)
    one = started(SelmaFinetuneTrainer, folders, pretrained=pretrained[0])
    heads = {name: value for name, value in parameters(one).items() if ".seg_layers." in name}
    one.on_train_start()
    assert all(torch.equal(parameters(one)[name], value) for name, value in heads.items())
    assert "WARNING: the segmentation heads start from random weights" in Path(one.log_file).read_text()


def test_several_processes_fit_their_heads_to_the_batches_of_all(folders, pretrained, monkeypatch):
    """This process sees background alone, which fits nothing; another one has seen both classes."""

    def load_background(one):
        one.dataloader_train = (
            {**loaded, "target": [0 * target for target in loaded["target"]]}
            for loaded in (batch(number) for number in count())
        )

    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_background)
    one = started(SelmaFinetuneTrainer, folders, pretrained=pretrained[0])
    theirs = read_voxels(one.network, [batch(7)], one.device, None)

    def gather(shares, mine):
        shares[:] = [mine, theirs]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    before = parameters(one)
    one.is_ddp = True
    one.on_train_start()
    one.is_ddp = False
    assert "The segmentation heads were fitted to what was carried over" in Path(one.log_file).read_text()
    assert {"decoder.seg_layers.0.weight", "decoder.seg_layers.1.weight"} <= moved(one, before)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"fit_head": False}, True),
        ({"carry": "encoder"}, True),
        ({"fit_head": False, "encoder_rate": 1.0, "decoder_rate": 1.0}, False),
    ],
)
def test_random_heads_above_slow_parts_are_warned_of(settings, warned, folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer, folders, **{"pretrained": pretrained[0], **settings})
    one.on_train_start()
    said = "above parts that learn at 0.03 of the rate" in Path(one.log_file).read_text()
    assert said == warned


def fitted_on(monkeypatch, samples):
    monkeypatch.setattr("nnunet_selma.trainers.finetune.samples_of", lambda _: samples)
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda self: None)


def test_the_fitted_threshold_lies_in_the_bias_of_the_finest_head(folders, monkeypatch):
    logits = torch.tensor([[0.0] * 6, [-3.0, -1.0, 1.0, 2.0, 3.0, 4.0]])
    fitted_on(monkeypatch, [Sample("case", logits, torch.tensor([0, 0, 0, 0, 1, 1]))])
    one = started(SelmaFinetuneTrainer, folders)
    one.has_trained = True
    before = parameters(one)
    one.on_train_end()
    assert moved(one, before) == {"decoder.seg_layers.1.bias"}
    shift = one.network.decoder.seg_layers[1].bias - before["decoder.seg_layers.1.bias"]
    assert shift[0] == 0
    assert -3 < shift.detach()[1] <= -2
    written = read_json(Path(one.output_folder) / "calibration.json")
    assert (written["dice_before"], written["dice_after"]) == (pytest.approx(2 / 3), 1.0)
    assert "Dice 0.667 before, 1.000 after" in Path(one.log_file).read_text()


@pytest.mark.parametrize("settings", [{"calibrate": False}, {}])
def test_nothing_is_shifted_where_it_is_turned_off_or_there_are_no_cases(settings, folders, monkeypatch):
    fitted_on(monkeypatch, [])
    one = started(SelmaFinetuneTrainer, folders, **settings)
    one.has_trained = True
    before = parameters(one)
    one.on_train_end()
    assert moved(one, before) == set()
    said = "the decision threshold stays as it is: there is no case" in Path(one.log_file).read_text()
    assert said == (settings == {})


@pytest.mark.parametrize("fault", ["no bias", "infinite logits"])
def test_a_threshold_that_cannot_be_fitted_ends_no_training(fault, folders, monkeypatch):
    fitted_on(monkeypatch, [])
    one = started(SelmaFinetuneTrainer, folders)
    one.has_trained = True
    if fault == "no bias":
        one.network.decoder.seg_layers[-1].bias = None
    else:

        def fails(_):
            raise RuntimeError("Encountered inf in predicted array")

        monkeypatch.setattr("nnunet_selma.trainers.finetune.samples_of", fails)
    one.on_train_end()
    reason = {"no bias": "the finest head", "infinite logits": "Encountered inf in predicted array"}[fault]
    assert f"WARNING: the decision threshold stays as it is: {reason}" in Path(one.log_file).read_text()


def test_a_finished_training_is_not_fitted_again(folders, monkeypatch):
    asked = []
    monkeypatch.setattr("nnunet_selma.trainers.finetune.samples_of", lambda _: asked.append(1) or [])
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda _: None)
    one = started(SelmaFinetuneTrainer, folders)
    one.on_train_end()
    assert asked == []
    train(one, [0], steps=1)
    one.on_train_end()
    assert asked == [1]


def test_weights_of_nnunets_own_option_learn_more_slowly_too(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer, folders)
    load_pretrained_weights(one.network, pretrained[0])
    one.on_train_start()
    rates = {group["part"]: group["rate"] for group in one.optimizer.param_groups}
    assert rates == {"heads": 1.0, "encoder": 0.03, "decoder": 0.03, "last step": 0.03}


@pytest.mark.parametrize("before", ["one group", "sgd"])
def test_a_training_that_another_optimiser_began_is_refused_with_a_sentence(before, folders, capsys):
    one = started(SelmaFinetuneTrainer, folders, optimizer="sgd" if before == "sgd" else "adamw")
    path = saved(one)
    if before == "one group":
        content = torch.load(path, weights_only=False)
        state = content["optimizer_state"]
        together = [number for group in state["param_groups"] for number in group["params"]]
        state["param_groups"] = [{**state["param_groups"][0], "params": together}]
        torch.save(content, path)
    with pytest.raises(SystemExit):
        started(SelmaFinetuneTrainer, folders, optimizer="adamw").load_checkpoint(path)
    assert "this training was begun with another optimiser" in capsys.readouterr().err


def test_low_rank_factors_learn_at_the_full_rate(folders, pretrained, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", load_batches)
    one = started(SelmaFinetuneTrainer_LoRA, folders, pretrained=pretrained[0])
    one.on_train_start()
    rates = {group["part"]: group["rate"] for group in one.optimizer.param_groups}
    assert rates == {"encoder": 1.0, "decoder": 0.03, "last step": 0.03, "heads": 1.0}
