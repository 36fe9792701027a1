"""One process holds a lock at a time, also where the file system knows no locks."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from nnunet_selma.running import locks
from nnunet_selma.running.locks import exclusive

HOLD = """
import sys, time, errno, fcntl
from pathlib import Path
from nnunet_selma.running.locks import exclusive
def lacking(*_):
    raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "lacking":
    fcntl.flock = lacking
with exclusive(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(100)
"""


@pytest.fixture(params=["flock", *("ENOLCK", "ENOTSUP", "ENOSYS")])
def locking(request, monkeypatch):
    """A file system with locks, and three that say in their ways that they have none."""
    if request.param != "flock":

        def lacking(*_):
            raise OSError(getattr(errno, request.param), "no locks here")

        monkeypatch.setattr(fcntl, "flock", lacking)
    return request.param


def test_one_holds_it_at_a_time_and_the_next_one_after_it(locking, tmp_path):
    lock = tmp_path / "lock"
    for _ in range(2):
        with exclusive(lock) as first:
            assert first
            with exclusive(lock) as second:
                assert not second
            with exclusive(lock) as third:  # the second did not release what it does not hold
                assert not third
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_a_folder_that_is_gone_cannot_be_locked(locking, tmp_path):
    with exclusive(tmp_path / "gone" / "lock") as held:
        assert not held


def test_a_folder_that_is_removed_under_the_lock_is_no_error(locking, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with exclusive(folder / "lock") as held:
        assert held
        folder.rename(tmp_path / "done")


@pytest.mark.parametrize("locks_of", ["flock", "lacking"])
def test_a_killed_process_releases_it(locks_of, tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    running = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), locks_of], stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "True\n"
    if locks_of == "lacking":
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    with exclusive(lock) as held:
        assert not held
    running.send_signal(signal.SIGKILL)
    running.wait()
    with exclusive(lock) as held:
        assert held


@pytest.mark.parametrize(("silent_for", "taken"), [(10, False), (3600, True)])
def test_a_process_on_another_host_counts_as_killed_when_it_is_silent(silent_for, taken, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "none")))
    held_file = tmp_path / "lock.held"
    held_file.write_text(json.dumps({"host": socket.gethostname() + "-other", "process": 1, "mark": "ab"}))
    then = time.time() - silent_for
    os.utime(held_file, (then, then))
    with exclusive(tmp_path / "lock") as held:
        assert held is taken
    assert held_file.exists() is not taken


def test_a_process_that_holds_it_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "none")))
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    with exclusive(tmp_path / "lock") as held:
        assert held
        os.utime(tmp_path / "lock.held", (0, 0))
        until = time.monotonic() + 20
        while (tmp_path / "lock.held").stat().st_mtime < 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / "lock.held").stat().st_mtime > 1


def test_other_errors_are_not_taken_for_a_lack_of_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
    with pytest.raises(OSError, match="disk"), exclusive(tmp_path / "lock"):
        pass
