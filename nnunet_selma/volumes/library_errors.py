"""Errors of libraries that read files, as the errors of this package."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_selma.errors import SelmaError


@contextmanager
def errors_as(error: SelmaError) -> Iterator[None]:
    """Raise this error for any that a library raises, and keep the library's warnings from the user, who can do nothing about them.

    Any exception counts, because what a damaged header holds is used as lengths, types and names; only a want of memory says nothing about
    the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SelmaError, MemoryError):
        raise
    except Exception as reason:
        raise error from reason
