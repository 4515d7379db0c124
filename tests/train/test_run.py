"""A run's folder: whose it is, what a state must be, and what is left of a start that failed."""

import errno
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import minivim.train.loop as train_module
import minivim.train.run as run_module
from minivim import files
from minivim.data.images import LazyImages
from minivim.train import train
from minivim.train.fingerprint import difference, fingerprint, hash_of
from minivim.train.recipes import resolve
from minivim.train.run import DIGEST_BYTES, RESULTS
from tests.train.small_runs import cut_after, records_of, small, small_bundle

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def cut_run(tmp_path: Path, monkeypatch, step: int) -> Path:
    """The folder of a run that was cut, with the state after that step of 24."""
    with monkeypatch.context() as patch:
        cut_after(patch, step)
        with pytest.raises(InterruptedError):
            train(small(tmp_path, save_seconds=0.0))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run that was cut in its second epoch, made once."""
    place = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "load_data", lambda *args, **options: small_bundle())
        return cut_run(place, patch, 10)


@pytest.fixture
def cut(prepared, small_data, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(prepared, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- whose folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", [*RESULTS, "config.json"])
def test_files_of_the_users_own_are_left_alone(small_data, tmp_path, name, resume):
    folder = tmp_path / "run"
    folder.mkdir()
    for each in (name, f".{name}.bak", f".{name}.1", "notes.txt"):
        (folder / each).write_text('{"hidden_size": 768}')
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"out is .*run', whose {name} (is not of a run; it must be a new|cannot be)"):
        train(small(tmp_path, resume=resume))
    assert contents(folder) == before


def test_hidden_files_of_the_users_own_stay_and_what_was_half_written_goes(small_data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (
        ".state.pt.bak",
        ".state.pt.12",
        "notes.txt",
        ".state.pt.1.unfinished.mine",
        ".best.safetensors.1.unfinished",
    ):
        (folder / name).write_text("mine")
    train(small(tmp_path, epochs=1))
    assert {path.name for path in folder.iterdir()} == {
        ".state.pt.bak", ".state.pt.12", ".state.pt.1.unfinished.mine", "notes.txt", "config.json", *RESULTS,
    }  # fmt: skip


def test_a_file_in_the_place_of_the_folder_is_named(small_data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="out is .*run', which is a file; it must be a folder"):
        train(small(tmp_path))
    assert (tmp_path / "run").read_text() == "mine"


HOLD = """
import sys
from pathlib import Path
from minivim.files import occupied
with occupied(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_at_once_and_a_killed_one_holds_nothing(small_data, cut, monkeypatch):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, cut], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    before = contents(cut)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"in which process {holder.pid} on .* is at"):
        patch.setattr(train_module, "load_data", lambda *args, **options: pytest.fail("data were loaded"))
        train(small(cut.parent, resume=True))
    assert contents(cut) == before
    holder.kill()
    holder.wait()
    assert len(train(small(cut.parent, resume=True)).history) == 3
    assert not (cut / files.LOCK_FILE).exists()


def test_a_failed_start_leaves_its_folder_to_the_next_one(small_data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="both must be finite"):
        train(small(tmp_path, lr=1e38, warmup=0.0))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(train_module.Trainer, "train_step", lambda *args: (_ for _ in ()).throw(MemoryError))
        train(small(tmp_path, resume=True))  # and with another lr
    assert len(train(small(tmp_path, epochs=2)).history) == 2
    with pytest.raises(ValueError, match="which holds a run; it must be a new folder, or resume be set"):
        train(small(tmp_path, epochs=2))


def test_a_run_that_begins_in_the_meantime_is_not_overwritten(small_data, tmp_path, monkeypatch):
    """After the first look into the folder, and before it is held."""
    original = run_module.occupied

    @contextmanager
    def late(folder):
        with original(folder):
            (folder / "state.pt").write_text("theirs")
            (folder / "config.json").write_text(json.dumps(asdict(resolve(small(tmp_path)))))
            yield

    monkeypatch.setattr(run_module, "occupied", late)
    with pytest.raises(ValueError, match="which holds a run; it must be a new folder, or resume be set"):
        train(small(tmp_path))
    assert (tmp_path / "run" / "state.pt").read_text() == "theirs"


# ---- the state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_state_with_one_bit_changed_is_refused(cut, place):
    path = cut / "state.pt"
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"whose state\.pt cannot be resumed \(it is damaged, .*checksum is wrong\)$"):
        train(small(cut.parent, resume=True))


@pytest.mark.parametrize("data", [b"", b"mine", bytes(1000)])
def test_what_is_no_state_is_refused_in_our_words(cut, data, unchecked):
    for content in (data, data + hashlib.sha256(data).digest()):
        (cut / "state.pt").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"state\.pt cannot be resumed \(it is (damaged|not the state of a run)"
        ) as e:
            train(small(cut.parent, resume=True))
        assert "weights_only" not in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 300


STRANGE = {
    "step": (10**9, -5, 7, 9.5, "ten", None),
    "history": ([], [{}], [{"step": 9}], [{"step": 8}, {"step": 16}], "abc", None),
    "loss_sum": (float("nan"), "1"),
    "best": (None,),
    "model": ({}, None),
}


@pytest.mark.parametrize("field, value", [(field, value) for field in STRANGE for value in STRANGE[field]])
def test_a_state_that_no_run_has_is_refused(cut, unchecked, field, value):
    path = cut / "state.pt"
    state = torch.load(io.BytesIO(path.read_bytes()[:-DIGEST_BYTES]), weights_only=True)
    buffer = io.BytesIO()
    torch.save(state | {field: value}, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(ValueError, match=r"whose state\.pt cannot be resumed \(.*\)$") as caught:
        train(small(cut.parent, resume=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field, value", [("seed", 1), ("depth", 2), ("classes", 2)])
def test_the_state_of_another_run_is_refused(small_data, cut, field, value):
    other = train(small(cut.parent / "other", **{field: value}))
    shutil.copy(other.out / "state.pt", cut)
    with pytest.raises(ValueError, match=f"it is of another run, whose {field} is {value} instead of"):
        train(small(cut.parent, resume=True))


def test_more_epochs_are_refused_with_the_reason(cut):
    with pytest.raises(ValueError, match="epochs is 5; it must be 3, .* because the learning rate falls towards"):
        train(small(cut.parent, resume=True, epochs=5))


# ---- the data --------------------------------------------------------------------------------------------------------


def changed(name: str):
    """Other data than those of the run, and what is said of them."""
    data = small_bundle()
    order = torch.randperm(160)
    return {
        "renamed": (replace(data, classes=("rows", "kolumns")), "class 1 is 'kolumns' instead of 'columns'"),
        "added": (replace(data, classes=(*data.classes, "new")), "class 2 is 'new' instead of None"),
        "come": (replace(data, train_images=torch.cat((data.train_images, data.train_images[:1])),
                         train_labels=torch.cat((data.train_labels, data.train_labels[:1]))),
                 "number of train images is 161 instead of 160"),
        "gone": (replace(data, test_images=data.test_images[1:], test_labels=data.test_labels[1:]),
                 "number of test images is 39 instead of 40"),
        "order": (replace(data, train_images=data.train_images[order], train_labels=data.train_labels[order]),
                  "train labels are other ones or in another order"),
        "images": (replace(data, train_images=data.train_images.flip(0).flip(3)), "train images are other ones"),
        "no validation": (replace(data, val_images=None, val_labels=None), "number of val images is 0 instead of 30"),
        "validation": (replace(data, val_images=data.val_images.flip(3)), "val images are other ones"),
        "pixel": (replace(data, test_images=data.test_images ^ (torch.arange(40) == 7).byte()[:, None, None, None]),
                  "test images are other ones"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["renamed", "added", "come", "gone", "order", "images", "no validation", "validation", "pixel"]
)
def test_other_data_are_refused_by_what_differs(cut, monkeypatch, name):
    before = contents(cut)
    data, sentence = changed(name)
    monkeypatch.setattr(train_module, "load_data", lambda *args, **options: data)
    with pytest.raises(ValueError, match=sentence) as caught:
        train(small(cut.parent, resume=True, model=None, embed_dim=None, depth=None))
    assert str(caught.value).startswith("data is 'digits', whose ")
    assert contents(cut) == before


def test_data_that_were_moved_are_the_same(cut, monkeypatch):
    assert len(train(small(cut.parent, resume=True, data="elsewhere")).history) == 3
    assert json.loads((cut / "config.json").read_text())["data"] == "elsewhere"


def test_images_not_in_memory_are_told_apart_by_some_of_them(tmp_path):
    from PIL import Image

    data = small_bundle()
    paths = [tmp_path / f"{index:03}.png" for index in range(100)]
    for path, image in zip(paths, data.train_images, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    now = replace(data, train_images=LazyImages(paths, 8), train_labels=data.train_labels[:100])
    assert difference(fingerprint(now), fingerprint(now)) is None
    later = replace(now, train_images=LazyImages(paths[2:] + paths[:2], 8))
    assert difference(fingerprint(later), fingerprint(now)) == "train images are other ones or in another order"


def test_a_hash_knows_the_shape():
    pixels = torch.arange(24, dtype=torch.uint8)
    assert hash_of([pixels.view(3, 2, 4)]) != hash_of([pixels.view(3, 4, 2)])


# ---- a full disk -----------------------------------------------------------------------------------------------------


class Full(io.FileIO):
    """A file on a disk that has room for ten bytes."""

    def write(self, data):
        super().write(bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["metrics.jsonl", "state.pt", "best.safetensors", "curves.png"])
def test_a_full_disk_is_named_with_its_file_and_costs_nothing(small_data, tmp_path, monkeypatch, name):
    cut, original = cut_run(tmp_path, monkeypatch, 5), Path.open

    def open_file(self, mode="r", *args, **options):
        full = name in self.name and mode in ("wb", "a")
        return Full(self, mode[0]) if full and "lock" not in self.name else original(self, mode, *args, **options)

    state = (cut / "state.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_file)
        with pytest.raises(OSError, match=rf"{name}' could not be written because .* must have [\d,]+ bytes free") as e:
            train(small(cut.parent, resume=True, save_seconds=1e9))
    assert e.value.errno == errno.ENOSPC
    assert not list(cut.glob("*.unfinished")) and not list(cut.glob(".*.unfinished"))
    assert (cut / "state.pt").read_bytes() == state or name == "curves.png"
    result = train(small(cut.parent, resume=True))
    whole = train(small(cut.parent / "whole"))
    assert records_of(cut) == records_of(whole.out) and result.accuracy == whole.accuracy


def test_threads_other_than_the_main_one_may_train(small_data, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(small(tmp_path, epochs=1))))
    thread.start()
    thread.join()
    assert len(results[0].history) == 1
