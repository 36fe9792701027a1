"""Errors of libraries that read files, as the errors of this package."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_selma.errors import SelmaError


@contextmanager
def errors_as(error: SelmaError) -> Iterator[None]:
    """Raise this error for any that a library raises, and keep the library's warnings from the user, who can do nothing about them.

    Any exception counts: what a damaged header holds is used as lengths, types and names, and fails in all ways, also for want of memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SelmaError:
        raise
    except Exception as reason:
        raise error from reason
