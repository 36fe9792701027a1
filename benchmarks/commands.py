"""A Python command in processes of its own: how long it takes, and how much memory the largest of them has at a time."""

import subprocess
import sys
import time
from collections.abc import Sequence

_IN_BETWEEN = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)
sys.exit(code)
"""
"""A small process that starts the command: at its start a process counts the memory of the one that starts it as its own."""


def seconds(arguments: Sequence[str]) -> float:
    """From start to end of `python ARGUMENTS`; raises RuntimeError with what it said if it fails."""
    started = time.monotonic()
    _run(arguments)
    return time.monotonic() - started


def peak_megabytes(arguments: Sequence[str]) -> float:
    """The most memory (10⁶ bytes) that `python ARGUMENTS` or a process it starts and waits for had; raises RuntimeError if it fails."""
    return int(_run(["-S", "-c", _IN_BETWEEN, sys.executable, *arguments])) / 1e6


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout
