"""Files are written as a whole or not at all; a folder belongs to one process at a time, on any disk."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minivim import files


def test_a_folder_is_held_against_threads_of_the_same_process_and_given_back(tmp_path):
    with files.occupied(tmp_path / "a"):
        with pytest.raises(ValueError, match="in which this process is at work; it must be another folder"):
            with files.occupied(tmp_path / "b" / ".." / "a"):
                pass
        with pytest.raises(ZeroDivisionError), files.occupied(tmp_path / "c"):
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with files.occupied(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


CROWD = """
import os, sys
from pathlib import Path
from minivim.files import occupied
children = [os.fork() for _ in range(3)]  # and this one, and the children's own children: eight
got = 0
while got < 20:
    try:
        with occupied(Path(sys.argv[1])):
            Path(sys.argv[2]).open("x").close()
            Path(sys.argv[2]).unlink()
            got += 1
    except ValueError as error:
        assert "is at work" in str(error)
sys.exit(max((os.waitpid(child, 0)[1] for child in children if child), default=0))
"""


def test_of_many_that_want_a_folder_one_at_a_time_has_it(tmp_path):
    """Each takes the folder 20 times, removing it in between, and inside it is alone."""
    assert subprocess.call([sys.executable, "-c", CROWD, tmp_path / "run", tmp_path / "alone"]) == 0
    assert not list(tmp_path.glob("run/*")) and not (tmp_path / "alone").exists()


def test_a_lock_file_that_its_holder_has_just_removed_is_not_taken_for_the_folders(tmp_path, monkeypatch):
    original, locked = files._lock, []

    def lock(file):
        if not locked:
            (tmp_path / files.LOCK_FILE).unlink()
        locked.append(file)
        return original(file)

    monkeypatch.setattr(files, "_lock", lock)
    with files.occupied(tmp_path):
        assert (tmp_path / files.LOCK_FILE).exists() and len(locked) == 2


def test_a_folder_that_is_removed_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    original, made = Path.mkdir, []

    def mkdir(folder, *args, **options):
        if not made:
            made.append(folder)
            raise FileExistsError(errno.EEXIST, "File exists", str(folder))  # and gone before anybody looks
        original(folder, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with files.occupied(tmp_path / "run"):
        assert made and (tmp_path / "run" / files.LOCK_FILE).exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), files.occupied(tmp_path / "file"):
        pass


LEAVE = """
import os, sys, time
from pathlib import Path
from minivim.files import occupied
with occupied(Path(sys.argv[1])):
    worker = os.fork()
    if not worker:
        time.sleep(60)
    print(worker, flush=True)
    time.sleep(60)
"""


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", LEAVE, tmp_path], stdout=subprocess.PIPE)
    worker = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        with files.occupied(tmp_path):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with files.occupied(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_disks_or_the_users_share_of_it(tmp_path, number):
    with pytest.raises(
        OSError, match=r"'.*x' could not be written because the disk is full: it must have 1,234 b"
    ) as e:
        with files.named_when_full(tmp_path / "x", 1234):
            raise OSError(number, "no room")
    assert e.value.errno == number


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Otherwise a machine that loses its power may find the name without the content."""
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, original=original: calls.append(name) or original(*args))
    files.write_atomically(tmp_path / "x", b"content")
    assert calls == ["fsync", "replace"] and (tmp_path / "x").read_bytes() == b"content"


def test_another_error_of_the_disk_is_raised_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write_atomically(tmp_path / "none" / "file", b"")
