"""The one error a user is meant to read."""


class SelmaError(ValueError):
    """A sentence that says what is wrong, with which file, and what to do; the command line prints it and exits with 2."""
