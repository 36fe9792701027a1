"""Locks between processes, also on file systems that know no locks."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

_UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks: some network file systems, and folders shared with containers."""
_BEAT = 20.0
"""Seconds between two signs of life of a process that holds a lock file."""
_STALE = 300.0
"""Seconds without a sign of life after which the process of a lock file counts as killed."""


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Yield True if this process holds the lock of a file, False if another one does or the file's folder is gone.

    The system releases the lock of a process that is killed. Where the file system knows no locks, a file `NAME.held` is created, which only
    one process can do; it is taken over if its process is dead or has given no sign of life for five minutes.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        with _held(path) as held:
            yield held
        return
    try:
        file = path.open("w")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            with _held(path) as held:
                yield held
            return
        try:
            same = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            same = False  # another process has removed the folder just before
        yield same


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """As `exclusive`, by a file that only one process can create."""
    lock = path.with_name(f"{path.name}.held")
    mark = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "mark": uuid4().hex})
    try:
        taken = _create(lock, mark) or (_remove_stale(lock) and _create(lock, mark))
    except FileNotFoundError:
        taken = False
    if not taken:
        yield False
        return
    stop = Event()
    beat = Thread(target=_beat, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _read(lock) == mark:
            lock.unlink(missing_ok=True)


def _create(lock: Path, mark: str) -> bool:
    try:
        with lock.open("x") as file:
            file.write(mark)
    except FileExistsError:
        return False
    return True


def _beat(lock: Path, stop: Event) -> None:
    """Renew the time of a lock file until the lock is released or its folder is gone."""
    while not stop.wait(_BEAT):
        try:
            os.utime(lock)
        except OSError:
            return


def _remove_stale(lock: Path) -> bool:
    """Remove a lock file whose process was killed; True if this process removed it."""
    mark = _read(lock)
    if mark is None or not _is_stale(lock, mark):
        return False
    aside = lock.with_name(f"{lock.name}.{uuid4().hex[:8]}")
    try:
        lock.rename(aside)  # only one process can
    except FileNotFoundError:
        return False
    if _read(aside) != mark:  # another process was faster, and its new lock was renamed here
        aside.rename(lock)
        return False
    aside.unlink(missing_ok=True)
    return True


def _is_stale(lock: Path, mark: str) -> bool:
    """True if the process is dead, which is known on its own host only, or silent for long by the clock of the file system."""
    try:
        holder = json.loads(mark)
    except ValueError:
        holder = {}  # killed while it wrote
    if os.name == "posix" and holder.get("host") == socket.gethostname() and not _runs(int(holder["process"])):
        return True
    now = lock.with_name(f"{lock.name}.{uuid4().hex[:8]}.now")
    try:
        now.touch()
        return now.stat().st_mtime - lock.stat().st_mtime > _STALE
    except FileNotFoundError:
        return False
    finally:
        now.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
