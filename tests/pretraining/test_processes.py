"""Two processes on a CPU in place of two GPUs."""

import subprocess
import sys

import pytest
import torch
from torch import multiprocessing

from nnunet_selma.pretraining.heads import gather_features
from nnunet_selma.pretraining.simclr import nt_xent
from tests.plans import network, plans
from tests.pretraining.test_distillation import pretext

WORLD = 2


def features(rank):
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def contrast(rank, device="cpu"):
    """Loss and gradients of one process for its share of the features."""
    first, second = (part.to(device).requires_grad_() for part in features(rank))
    loss = nt_xent(gather_features(first), gather_features(second), 0.5)
    loss.backward()
    return loss.detach(), first.grad, second.grad


def assert_as_one_batch(results):
    """Compare what the processes computed with the same on all features in one process."""
    shares = [features(rank) for rank in range(WORLD)]
    first, second = (torch.cat([share[view] for share in shares]).requires_grad_() for view in range(2))
    loss = nt_xent(first, second, 0.5)
    loss.backward()
    for rank, (found, *gradients) in enumerate(results):
        torch.testing.assert_close(found, loss.detach())
        # summed over processes, which DistributedDataParallel turns into a mean
        for gradient, expected in zip(gradients, (first.grad, second.grad), strict=True):
            torch.testing.assert_close(gradient, WORLD * expected.chunk(WORLD)[rank])


def centre(rank):
    """The centre of the tokens, where the second process has no masked one."""
    one = pretext(network(plans()), centring="centre")
    one.train()
    scores = torch.arange(96.0).reshape(3, 32)[: 3 if rank == 0 else 0]
    one.sharpened(scores, "token")
    return one.token_centre


def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    torch.save({"contrast": contrast(rank), "centre": centre(rank)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_contrast_over_processes_is_that_of_one_batch(results):
    assert_as_one_batch([result["contrast"] for result in results])


def test_a_process_without_masked_tokens_holds_up_no_other(results):
    scores = torch.arange(96.0).reshape(3, 32)
    for result in results:
        torch.testing.assert_close(result["centre"], 0.1 * scores.mean(0))


FAILING = """
import torch
from nnunet_selma.errors import SelmaError
from nnunet_selma.trainers.failures import plain_errors

def work(rank):
    with plain_errors():
        raise SelmaError("the sentence of a process")

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, nprocs=2)
"""


def test_a_sentence_of_a_process_reaches_the_user(tmp_path):
    script = tmp_path / "several.py"
    script.write_text(FAILING)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nnunet-selma: the sentence of a process" in done.stderr
    assert "SelmaError" not in done.stderr
