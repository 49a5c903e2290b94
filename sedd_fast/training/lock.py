"""One process at a time in a run directory.

The lock is `flock` on RUN/run.lock, which the kernel releases when the process dies, so a killed
run leaves no lock behind. The file names the owner, for the message of another process. Where there
are no such locks (some network file systems, Windows) the owner that the file names is the lock: a
dead owner on this host is replaced, and a file from another host must be removed by hand.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"

#: Locks of this process: on some network file systems flock does not refuse its own process.
_held: set[Path] = set()


def is_locked(directory: Path) -> bool:
    """Whether another process, or another run in this one, holds the lock of the directory now."""
    try:
        with run_lock(directory):
            return False
    except ValueError:
        return True


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which is created; if it stays empty it is removed again.

    Raises:
        ValueError: another process, or another run in this process, holds the lock; a file is in
            the directory's place.
    """
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"run_dir: {directory} is not a directory; choose another name") from None
    path = directory.resolve() / NAME
    try:
        if path in _held:
            raise _in_use(path)
        descriptor = _acquire(path)
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)
            if fcntl is None:
                os.close(descriptor)  # Windows removes no open file
            with suppress(OSError):
                path.unlink()
            if fcntl is not None:
                os.close(descriptor)  # last: until then the file is of this process
    finally:
        for folder in created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _acquire(path: Path) -> int:
    """The descriptor that holds the lock."""
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(path) from None
        except OSError:  # the file system has no locks
            os.close(descriptor)
            break
        if _is_at(path, descriptor):
            _write_owner(descriptor)
            return descriptor
        os.close(descriptor)  # its owner removed the file after it was opened here
    return _create(path)


def _create(path: Path) -> int:
    """The same by a file that exists while its owner lives."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            owner = _owner(path)
            if owner and (owner["host"] != socket.gethostname() or _is_other(owner["pid"])):
                raise _in_use(path) from None
            path.unlink(missing_ok=True)
            continue
        _write_owner(descriptor)
        return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, owner.encode())


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(owner["pid"]), "host": str(owner["host"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _is_other(pid: int) -> bool:
    """Whether it is the number of another process that is running."""
    if pid == os.getpid():  # of an earlier process with the same number
        return False
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _in_use(path: Path) -> ValueError:
    owner = _owner(path)
    who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
    remedy = "wait until it ends or stop it"
    if owner and owner["pid"] == os.getpid() and owner["host"] == socket.gethostname():
        who, remedy = "a run of this process", "wait until that run ends"
    return ValueError(
        f"run_dir: {path.parent} is in use by {who}; {remedy}, then try again (if no such process "
        f"is running, remove {path})"
    )
