"""Files that are never half written."""

import os
from pathlib import Path


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
