"""The error that users read, and the number of things in a sentence."""

import errno
import re
from collections.abc import Container

OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
"""An option of the command line within a text."""


class SelmaError(ValueError):
    """An error whose message states what is wrong, with which file, and what to do; the command line prints it and exits with 2.

    Args:
        sentence: the message; it names no option that a command lacks which may print it.
        option: a further remedy, by an option that only some of these commands have, as in "add --on-bad-slice interpolate".
    """

    def __init__(self, sentence: str, *, option: str = "") -> None:
        super().__init__(sentence)
        self.option = option

    def for_command(self, options: Container[str]) -> str:
        """The message of a command with these options: with the further remedy if the command has the option it needs."""
        has_it = self.option and all(name in options for name in OPTION.findall(self.option))
        return f"{self}, or {self.option}" if has_it else str(self)


def sentence_of(error: OSError | MemoryError) -> SelmaError:
    """The error for a user where a file could not be read or written, or memory ran out."""
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return SelmaError(f"there is not enough memory{reason}; make some free", option="take fewer --workers")
    remedy = (
        "make room and run the command again" if error.errno == errno.ENOSPC else "check the path and its permissions"
    )
    return SelmaError(f"{error.filename or 'the disk'}: {error.strerror or error}; {remedy}")


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number of things: "1 case", "3 cases"; the plural is needed where it is not the singular and an s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
