"""Where compiled kernels and verdicts on them are kept: a folder that can be written, named by a hash of all kernels.

An edit of any kernel, and `git pull` is one, gives another hash: no process ever meets machine code of other lines.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@cache
def fingerprint() -> str:
    """A hash of every line of the kernels."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def lasting_places() -> Iterator[Path]:
    """Folders that outlive the process, the preferred first: NUMBA_CACHE_DIR, the package's own, the user's."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named)
    yield PACKAGE / "__pycache__"
    if shared := os.environ.get("XDG_CACHE_HOME"):
        yield Path(shared) / "minivim"
    try:
        yield Path.home() / ".cache" / "minivim"
    except RuntimeError:  # a user without a home
        return


def temporary_place() -> Path:
    """The user's own folder among the temporary ones."""
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"minivim-{owner}"


def can_be_written(folder: Path) -> bool:
    """Make the folder and try it: rights alone do not tell of a full disk or a file in the way."""
    trial = folder / f".trial.{uuid.uuid4().hex}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        trial.write_bytes(bytes(4096))
        trial.unlink()
        return True
    except OSError:
        return False


def is_ours(folder: Path) -> bool:
    """Whether nobody else can have put code there; where the system knows no owners, it is."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@cache
def folder() -> Path | None:
    """This version's folder, made if need be; None, with a warning, where no folder can be written."""
    name = f"kernels-{fingerprint()}"
    places = list(lasting_places())
    for place in places:
        if can_be_written(place / name):
            return place / name
    temporary, tried = temporary_place(), ", ".join(map(str, places))
    usable = can_be_written(temporary) and is_ours(temporary) and can_be_written(temporary / name)
    where = f"in {temporary}" if usable else "for this process only"
    warnings.warn(
        f"compiled kernels are kept {where}, because none of {tried} can be written; "
        "set NUMBA_CACHE_DIR to a folder that lasts",
        RuntimeWarning,
        stacklevel=2,
    )
    return temporary / name if usable else None


def discard(damaged: Path, error: Exception) -> None:
    """Empty a folder whose files cannot be read, and say so."""
    shutil.rmtree(damaged, ignore_errors=True)
    warnings.warn(
        f"the compiled kernels in {damaged} cannot be used ({type(error).__name__}: {error}); they are compiled anew",
        RuntimeWarning,
        stacklevel=2,
    )
