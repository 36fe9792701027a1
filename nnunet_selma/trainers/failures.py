"""Errors of a training: ends with a sentence instead of a traceback, and the search for their cause."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import torch

from nnunet_selma.errors import SelmaError

_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")
"""Words in the errors of PyTorch, cuBLAS and cuDNN when memory runs out."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with the sentence of a `SelmaError` and exit code 2, as the command line does; also a decorator."""
    try:
        yield
    except SelmaError as error:
        print(f"nnunet-selma: {error}", file=sys.stderr)  # noqa: T201 - nnU-Net's commands have no other channel
        raise SystemExit(2) from None


@contextmanager
def causes_named(no_memory: str, damaged_cases: Callable[[], str]) -> Iterator[None]:
    """Raise `SelmaError` in place of another error if memory has run out or a case is damaged, because nnU-Net's errors do not say so.

    Args:
        no_memory: sentence for when memory has run out.
        damaged_cases: returns sentences about damaged cases; empty if all are good.
    """
    try:
        yield
    except SelmaError:
        raise
    except (RuntimeError, MemoryError, OSError, EOFError, ValueError, UnpicklingError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise SelmaError(no_memory) from error
        if faults := damaged_cases():
            raise SelmaError(
                f"{faults}; run nnU-Net's preprocessing of this dataset again (this run ended with {type(error).__name__}: {error})"
            ) from error
        raise


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """True if no number is NaN or infinite; waits for the device once."""
    finite = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
    # optimisers may keep their counts of steps on the CPU
    return not finite or bool(torch.stack([each.to(finite[0].device) for each in finite]).all())
