"""Training steps on a GPU: finite, the same in half precision, compiled, resumed, without a wait, as small and as fast as nnU-Net's."""

import pytest
import torch

from nnunet_selma.finetuning.losses import TERMS
from nnunet_selma.networks.parts import bare
from nnunet_selma.trainers.failures import are_finite
from tests.gpu.steps import FINETUNINGS, PRETRAININGS, batch, begin, bytes_of_step, made, seconds, wait
from tests.trainers.test_trainers import WaitsForTheDevice

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")]
OPTIMISERS = ("sgd", "adamw")


def tensors_of(one):
    """Weights, and what the optimiser keeps."""
    kept = [value for state in one.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*bare(one.network).state_dict().values(), *kept]


def section_of(name):
    return "pretraining" if name in PRETRAININGS else "finetuning"


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("name", [*PRETRAININGS, *FINETUNINGS])
def test_first_steps_stay_finite_also_where_they_overflow(name, optimizer, folders, device, size, row):
    finite = 0
    for seed in range(size.seeds):
        one = made(name, folders, device, size, **{section_of(name): {"optimizer": optimizer, "seed": seed}})
        begin(one, 0)
        for _ in range(3):
            one.train_step(batch(size, seed))
        finite += are_finite(tensors_of(one))
    one = made(name, folders, device, size, **{section_of(name): {"optimizer": optimizer}})
    epochs = (0, one.frozen_epochs()) if name.endswith("Unfreezing") else (0,)
    for epoch in epochs:  # also the first step of what was frozen
        begin(one, epoch)
        before = [tensor.clone() for tensor in bare(one.network).parameters()]
        one.grad_scaler = torch.amp.GradScaler(device.type, init_scale=float("inf"))
        # memory that was used before, as activations leave it: what is not filled afterwards holds NaN
        del [torch.full_like(value, float("nan")) for value in bare(one.network).parameters()][:]
        one.train_step(batch(size))
        assert all(torch.equal(a, b) for a, b in zip(before, bare(one.network).parameters(), strict=True))
        one.grad_scaler._scale.fill_(1024.0)
        for _ in range(3):
            one.train_step(batch(size))
        assert are_finite(tensors_of(one))
    row(f"first steps, {name}, {optimizer}", f"{finite} of {size.seeds} seeds finite, overflow forced: finite", "all")
    assert finite == size.seeds


def close(half, single):
    return abs(half - single) <= 0.01 * max(abs(single), 0.1)


@pytest.mark.parametrize("name", PRETRAININGS)
def test_a_pretext_says_the_same_in_half_precision(name, folders, device, size, row):
    losses = []
    for enabled in (True, False):
        one = made(name, folders, device, size)
        one.pretext.reseed(3)
        with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=enabled):
            terms = one.loss(*one.on_device(batch(size)))
        losses.append(float(sum(terms.values())))
    row(f"half against single precision, {name}", f"{losses[0]:.4f}, {losses[1]:.4f}", "within 1 %")
    assert close(*losses)


@pytest.mark.parametrize("loss", TERMS)
def test_a_loss_says_the_same_in_half_precision(loss, folders, device, size, row):
    one = made("SelmaFinetuneTrainer", folders, device, size, finetuning={"loss": loss})
    given = batch(size)
    losses = []
    for enabled in (True, False):
        with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=enabled):
            losses.append(
                float(one.loss(one.network(given["data"].to(device)), [each.to(device) for each in given["target"]]))
            )
    row(f"half against single precision, {loss}", f"{losses[0]:.4f}, {losses[1]:.4f}", "within 1 %")
    assert close(*losses)


@pytest.mark.parametrize("name", [*PRETRAININGS, "SelmaFinetuneTrainer"])
def test_a_compiled_training_compiles_validates_and_goes_on(name, folders, device, size, row, monkeypatch):
    from nnunet_selma import trainers

    monkeypatch.setattr(getattr(trainers, name), "_do_i_compile", lambda _: True)
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda module, **_: torch._dynamo.optimize("eager")(module))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    one = made(name, folders, device, size)
    for epoch in range(2):
        begin(one, epoch)
        one.train_step(batch(size, epoch))
        with torch.no_grad():
            one.on_validation_epoch_start()
            one.validation_step(batch(size, epoch))
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    path = f"{one.output_folder}/compiled.pth"
    one.save_checkpoint(path)
    again = made(name, folders, device, size)
    again.load_checkpoint(path)
    begin(again, 2)
    again.train_step(batch(size, 2))
    torch._dynamo.reset()
    row(f"torch.compile, {name}", f"{frames} frames, went on", "above 0")
    assert frames > 0
    assert are_finite(tensors_of(again))


@pytest.mark.parametrize("name", [*PRETRAININGS, *FINETUNINGS])
def test_a_training_goes_on_with_everything_it_had_on_either_device(name, folders, device, size, row):
    whole = made(name, folders, device, size)
    whole.train_step(batch(size))
    path = f"{whole.output_folder}/resumed.pth"
    whole.save_checkpoint(path)
    same = made(name, folders, device, size)
    same.load_checkpoint(path)
    for ours, theirs in zip(tensors_of(same), tensors_of(whole), strict=True):
        assert torch.equal(ours, theirs)
    if whole.grad_scaler is not None:
        assert same.grad_scaler.get_scale() == whole.grad_scaler.get_scale()
    if name in PRETRAININGS:
        theirs = whole.pretext.state_dict()
        assert all(
            torch.equal(v, theirs[k]) if torch.is_tensor(v) else v == theirs[k]
            for k, v in same.pretext.state_dict().items()
        )
        draws = []
        for one in (whole, same):
            begin(one, 1)
            draws.append(torch.rand(4, generator=one.pretext.generator, device=one.pretext.generator.device))
        assert torch.equal(*draws)
    other = torch.device("cpu")
    there = made(name, folders, other, size)
    there.load_checkpoint(path)
    there.train_step(batch(size))
    there.save_checkpoint(path)
    back = made(name, folders, device, size)
    back.load_checkpoint(path)
    back.train_step(batch(size))
    assert are_finite(tensors_of(back))
    row(f"resume, {name}", f"equal on {device.type}; to the CPU and back: finite", "equal")


@pytest.mark.parametrize("name", [*PRETRAININGS, *(f"SelmaFinetuneTrainer, {loss}" for loss in TERMS)])
def test_a_step_takes_about_the_memory_of_nnunets(name, folders, device, size, row):
    kind, _, loss = name.partition(", ")
    taken = []
    for each in ("nnUNetTrainer", kind):
        settings = {"finetuning": {"loss": loss}} if loss and each != "nnUNetTrainer" else {}
        one = made(each, folders, device, size, size.memory_patch, **settings)
        taken.append(bytes_of_step(one, batch(size, patch=size.memory_patch)))
        del one
        if device.type == "cuda":
            torch.cuda.empty_cache()
    # two views of every patch go through the network at once: docs/performance.md says so
    most = 2.0 if kind.endswith("MultiTask") else 1.2
    row(
        f"memory of a step at {size.memory_patch}³, {name}",
        f"{taken[1] / taken[0]:.2f} of nnU-Net's {taken[0] / 1e9:.2f} GB",
        f"at most {most}",
    )
    assert taken[1] <= most * taken[0] or device.type == "cpu"  # in single precision losses weigh less there


@pytest.mark.parametrize("name", [*PRETRAININGS, *(f"SelmaFinetuneTrainer, {loss}" for loss in TERMS)])
def test_no_step_waits_for_the_device(name, folders, device, size, row):
    kind, _, loss = name.partition(", ")
    one = made(kind, folders, device, size, **({"finetuning": {"loss": loss}} if loss else {}))
    given = batch(size)
    targets = [each.to(device) for each in given["target"]]
    patches, structures = one.on_device(given) if kind in PRETRAININGS else (given["data"].to(device), None)

    def compute():
        return one.loss(patches, structures) if structures is not None else one.loss(one.network(patches), targets)

    compute()  # constants are made in the first step
    wait(device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with WaitsForTheDevice() as watch:
            compute()
        assert watch.found == []
    row(f"no waiting, {name}", "none", "none")


def test_bfloat16_needs_no_scaler_and_cuts_nothing(folders, device, size, row):
    if device.type == "cpu" or not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bfloat16")
    one = made("SelmaSSLTrainer", folders, device, size, gpu={"precision": "bfloat16"})
    bright = {**batch(size), "data": 5000 + 20000 * batch(size)["data"].abs()}
    losses = [float(one.train_step(bright)["loss"]) for _ in range(3)]
    torch.set_autocast_dtype("cuda", torch.float16)
    row("gpu.precision=bfloat16 on voxels up to 100,000", f"losses {losses[0]:.3g}, {losses[-1]:.3g}", "finite")
    assert one.grad_scaler is None
    assert are_finite(tensors_of(one))
    assert int(one.loss.cut_voxels) == 0


def test_channels_last_computes_the_same(folders, device, size, row):
    losses, times = [], []
    for channels_last in (False, True):
        one = made("SelmaFinetuneTrainer", folders, device, size, gpu={"channels_last": channels_last})
        losses.append(float(one.train_step(batch(size))["loss"]))
        times.append(seconds(one, size))
    row(
        "channels_last, SelmaFinetuneTrainer",
        f"loss {losses[1]:.4f}, {times[0] / times[1]:.2f} × as fast",
        f"loss {losses[0]:.4f} ± 1 %",
    )
    assert close(*losses)


def test_steps_a_second_beside_nnunets(folders, device, size, row):
    stock = 1 / seconds(made("nnUNetTrainer", folders, device, size), size)
    row("steps/s, nnUNetTrainer", f"{stock:.1f}", "")
    for name in (*PRETRAININGS, *FINETUNINGS):
        one = made(name, folders, device, size)
        row(f"steps/s, {name}", f"{1 / seconds(one, size):.1f}", "")
        assert are_finite(tensors_of(one))
