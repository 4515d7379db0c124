"""Files that are never half written, and folders that one process at a time writes to."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # so that it can be asked for
    import msvcrt

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # the disk, or the user's share of it
LOCK_FILE = ".minivim.lock"
held: set[Path] = set()  # folders that this process holds: the system's locks are between processes


@contextmanager
def named_when_full(path: Path, size: int) -> Iterator[None]:
    """An OSError of a full disk, from inside, says which file it was and how much room it needs."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        full = OSError(
            f"{str(path)!r} could not be written because the disk is full: it must have {size:,} bytes free, "
            f"and has {free:,}"
        )
        full.errno = error.errno
        raise full from error


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    Raises OSError, which names the file and its size if the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with named_when_full(path, len(data)):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def unfinished(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """What killed processes left half written of the files of these names."""
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+\.unfinished")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold a folder against every other process, on this machine or another; it is made, and if empty removed again.

    The system gives the lock back when the process ends, however it ends. Raises ValueError if another one has it.
    """
    made, folder = not folder.exists(), folder.resolve()
    file = _take(folder)
    held.add(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            (folder / LOCK_FILE).unlink()  # before it is let go, so that nobody else's is removed
        held.discard(folder)
        file.close()
        if made:
            with suppress(OSError):  # somebody has written to it
                folder.rmdir()


def _take(folder: Path) -> IO[str]:
    """The folder's lock file, locked, with the name of this process in it."""
    if folder in held:
        raise _in_use(folder, "this process")
    path = folder / LOCK_FILE
    while True:
        with suppress(FileNotFoundError):  # a process that has just ended took the file, or the folder, with it
            _make(folder)
            file = path.open("a+")
            if not _lock(file):
                file.seek(0)
                raise _in_use(folder, file.read())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
    with named_when_full(path, 100):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file


def _make(folder: Path) -> None:
    """Make a folder that may exist, and that another process may remove while this one looks whether it does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if folder.exists() and not folder.is_dir():
            raise


def _lock(file: IO[str]) -> bool:
    """Whether nobody else holds the file; this process does from now on."""
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept by a forked worker
        else:
            file.seek(2**20)  # beyond what is read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # on Windows they are there
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _in_use(folder: Path, owner: str) -> ValueError:
    return ValueError(
        f"out is {str(folder)!r}, in which {owner or 'another process'} is at work; it must be another folder"
    )
