"""The error that users read."""


class SelmaError(ValueError):
    """An error whose message states what is wrong, with which file, and what to do; the command line prints it and exits with 2."""
