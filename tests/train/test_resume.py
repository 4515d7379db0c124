"""A run that is cut, killed or asked to go on leaves the same files as one that ran through."""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import minivim.train.loop as train_module
from minivim.data import ImageData
from minivim.data.images import LazyImages
from minivim.models import checkpoints
from minivim.train.loop import train
from minivim.train.recipes import TrainConfig, resolve
from minivim.train.tasks import Classification
from tests.train.small_runs import cut_after, records_of, same, small, small_bundle, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def test_lazy_images_train_through_workers_and_resume_alike(small_data, tmp_path, monkeypatch):
    from PIL import Image

    for index, image in enumerate(small_data.train_images[:40]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index:03}.png")
    paths = sorted(tmp_path.glob("*.png"))
    lazy = ImageData("lazy", LazyImages(paths, 8), small_data.train_labels[:40], LazyImages(paths, 8),
                     small_data.train_labels[:40], small_data.classes, small_data.mean, small_data.std)  # fmt: skip
    monkeypatch.setattr(train_module, "load_data", lambda *args, **options: lazy)
    # One process decodes ahead in a worker; the other decodes itself, and is cut in the middle of the second epoch.
    whole = train(small(tmp_path, epochs=2, batch_size=8, workers=1, crop_scale=0.5, out=str(tmp_path / "a")))
    changes = {"epochs": 2, "batch_size": 8, "workers": 0, "crop_scale": 0.5, "out": str(tmp_path / "b")}
    cut_after(monkeypatch, 7)
    with pytest.raises(InterruptedError):
        train(small(tmp_path, save_seconds=0.0, **changes))
    monkeypatch.undo()
    monkeypatch.setattr(train_module, "load_data", lambda *args, **options: lazy)
    train(small(tmp_path, resume=True, **changes))
    for name, tensor in tensors_of(whole.out).items():
        assert torch.equal(tensor, tensors_of(tmp_path / "b")[name]), name


@pytest.mark.parametrize("cut", [3, 8, 13])  # within the first epoch; at its end; within the second
def test_a_cut_run_resumes_bit_for_bit(small_data, tmp_path, monkeypatch, cut):
    everything = {
        "drop_path": 0.2,
        "mixup": 0.5,
        "cutmix": 0.5,
        "crop": 1,
        "erase": 0.3,
        "jitter": 0.2,
        "depth": 2,
        "save_seconds": 0.0,
    }
    whole = train(small(tmp_path, out=str(tmp_path / "whole"), **everything))
    with monkeypatch.context() as patch:
        cut_after(patch, cut)
        with pytest.raises(InterruptedError):
            train(small(tmp_path, out=str(tmp_path / "cut"), **everything))
    cut_run = train(TrainConfig(out=str(tmp_path / "cut"), resume=True))  # all else comes from the folder
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "cut")
    for name, tensor in tensors_of(tmp_path / "whole").items():
        assert torch.equal(tensor, tensors_of(tmp_path / "cut")[name]), name
    assert [r["train_loss"] for r in whole.history] == [r["train_loss"] for r in cut_run.history]


def test_the_best_epoch_is_remembered_by_a_resumed_run(small_data, tmp_path, monkeypatch):
    scores, original = iter([0.9, 0.5, 0.4]), Classification.evaluate

    def evaluate(self, model, part):
        return original(self, model, part) | ({"val_accuracy": next(scores)} if part == "val" else {})

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        cut_after(patch, 10)
        train(small(tmp_path, save_seconds=0.0))
    assert train(small(tmp_path, resume=True)).history[-1]["best_epoch"] == 1
    assert checkpoints.load_extra(tmp_path / "run" / "best.safetensors")["step"] == 8


def train_on_stripes(config: TrainConfig) -> None:
    """What the processes that get killed do."""
    data = small_bundle()
    train_module.load_data = lambda *args, **options: data
    train(config)


def test_ten_kills_leave_no_trace(tmp_path, monkeypatch):
    """SIGKILL at ten random moments, resumed each time: the same weights, optimizer and metrics as without a kill."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    context = multiprocessing.get_context("forkserver")  # imports everything once, so that its processes start fast
    context.set_forkserver_preload(["test_resume", "torch._dynamo", "safetensors.torch", "matplotlib.figure"])

    def start(name: str, **changes):
        config = small(tmp_path, out=str(tmp_path / name), epochs=20, drop_path=0.1, depth=2, mixup=0.5, **changes)
        process = context.Process(target=train_on_stripes, args=(config,))
        process.start()
        return process

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    seconds = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    moments, steps, state = random.Random(0), [], tmp_path / "killed" / "state.pt"
    for kill in range(10):
        before = state.stat().st_mtime_ns if state.exists() else None
        process = start("killed", resume=True, save_seconds=0.0)
        # Two die before they have got anywhere, the others at some moment after they have.
        while kill % 5 and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.07 * seconds))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.append(torch.load(state, weights_only=True)["step"] if state.exists() else 0)
    last = start("killed", resume=True)
    last.join()
    assert last.exitcode == 0
    print(f"resumed at steps {steps} of 160")
    assert len(set(steps)) >= 3 and any(step % 8 for step in steps)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed")]
    for key in ("model", "average", "optimizer", "step", "best"):
        assert same(states[0][key], states[1][key]), key
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*"))  # no half-written files stay


def test_a_folder_with_a_run_is_not_overwritten_and_resumes_only_as_it_was(small_data, tmp_path):
    train(small(tmp_path, epochs=1))
    with pytest.raises(ValueError, match="out is .*run', which holds a run; it must be a new folder, or resume be set"):
        train(small(tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"lr is 0\.5; it must be 0\.003, as in the run that is resumed"):
        train(small(tmp_path, epochs=1, resume=True, lr=0.5))
    with pytest.raises(ValueError, match="out is None although resume is set"):
        resolve(TrainConfig(resume=True))
    again = train(
        small(tmp_path, epochs=1, resume=True, threads=1, tensorboard=False)
    )  # finished: nothing is done twice
    assert len(again.history) == 1
    (tmp_path / "run" / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"whose state\.pt cannot be resumed"):
        train(small(tmp_path, epochs=1, resume=True))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"whose config\.json cannot be read"):
        resolve(TrainConfig(out=str(tmp_path / "run"), resume=True))
