"""Several processes do the work of one."""

import mmap
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import minivim.train.loop as train_module
from minivim import create_model, processes
from minivim.models import checkpoints
from minivim.train import compute_gradients, train
from minivim.train.loop import Trainer
from minivim.train.recipes import TrainConfig
from tests.train.small_runs import TINY, records_of, same, small, small_bundle, striped_folder

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def joint_batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 8, 8, generator=g), torch.rand(8, 10, generator=g).softmax(1)


def same_model():
    torch.manual_seed(5)
    return create_model("vim_nano_patch2_8", embed_dim=16, depth=2)


def one_of_two(rank: int, folder: str) -> None:
    """What each of the two processes does: gradients of its half of the batch, then a short run."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, targets = joint_batch()
    model = same_model()
    compute_gradients(DistributedDataParallel(model), images[rank * 4 : rank * 4 + 4], targets[rank * 4 : rank * 4 + 4])
    result = train(TrainConfig(out=f"{folder}/run", **PLAIN))
    given = torch.full((3,), float(rank + 5))
    processes.Team(rank, 2, torch.device("cpu")).give([given])
    torch.save(
        {"given": given, "gradients": [p.grad for p in model.parameters()], "weights": result.model.state_dict(),
         "history": result.history, "tuned": tuned(folder), **stop_at_step_12(rank, folder),
         **with_and_without_compile(folder)},
        f"{folder}/{rank}.pt",
    )  # fmt: skip
    dist.destroy_process_group()


def tuned(folder: str) -> dict:
    """The weights of a run that starts from a file and trains the head alone."""
    with mock.patch.object(train_module, "load_data", lambda *args, **options: small_bundle()):
        config = small(Path(folder, "tuned"), epochs=1, init=f"{folder}/old.safetensors", freeze=True, accumulate=2)
        return train(config).model.state_dict()


def with_and_without_compile(folder: str) -> dict:
    """The weights of a plain run, and of a compiled one in parts; the graphs that there are after each step."""
    graphs, made, original = [], [], Trainer.train_step

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(self, images, labels):
        original(self, images, labels)
        made.append(len(graphs))

    with (
        mock.patch.object(train_module, "load_data", lambda *args, **options: small_bundle()),
        mock.patch.object(torch, "compile", partial(torch.compile, backend=keep)),
        mock.patch.object(Trainer, "train_step", step),
    ):
        plain = train(small(Path(folder, "plain"), epochs=1))
        compiled = train(small(Path(folder, "compiled"), epochs=1, accumulate=2, compile=True))
    return {"plain": plain.model.state_dict(), "compiled": compiled.model.state_dict(), "made": made}


def stop_at_step_12(rank: int, folder: str) -> dict:
    """A run in which each process has images of its own, and the loss of the second one is broken in the end."""
    data = small_bundle()
    data = replace(data, train_labels=data.train_labels * (1 - rank))  # all that the second one sees are rows
    losses, histories, original = [], [], Trainer.train_step

    def step(self, images, labels):
        original(self, images, labels)
        if rank == 1 and self.step == 12:
            self.unseen[-1][0] = torch.nan
        losses.append(self.unseen[-1][0].item())
        histories.append(self.history)

    with (
        mock.patch.object(train_module, "load_data", lambda *args, **options: data),
        mock.patch.object(Trainer, "train_step", step),
        pytest.raises(ValueError, match="loss is nan and") as stopped,
    ):
        train(small(Path(folder, "broken")))
    return {"losses": losses[:8], "mean": histories[-1][0]["train_loss"], "stopped": str(stopped.value)}


PLAIN = dict(TINY, data="shapes", epochs=1, batch_size=400, flip=0.0, crop=0, smoothing=0.0, progress=False)


def test_two_processes_do_the_work_of_one(tmp_path):
    old = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, patch_size=4)
    checkpoints.save(old, tmp_path / "old.safetensors")
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = same_model()
    compute_gradients(model, *joint_batch())
    for parameter, *gradients in zip(model.parameters(), *(rank["gradients"] for rank in ranks), strict=True):
        for gradient in gradients:
            assert torch.allclose(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert [rank["given"].tolist() for rank in ranks] == [[5.0] * 3] * 2
    alone = train(TrainConfig(out=str(tmp_path / "alone"), **PLAIN)).history[-1]
    for rank in ranks:
        assert rank["history"][-1]["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        assert rank["history"][-1]["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-3)
    assert len(records_of(tmp_path / "run")) == 1  # only one of the two writes
    assert same(ranks[0]["tuned"], ranks[1]["tuned"])
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, ranks[0]["tuned"][name]) != name.startswith("head."), name
    for rank in ranks:
        assert rank["plain"].keys() == rank["compiled"].keys()
        for name, tensor in rank["plain"].items():
            assert torch.allclose(tensor, rank["compiled"][name], atol=1e-5), name
        plain, compiled = rank["made"][:8], rank["made"][8:]
        assert plain == [0] * 8 and compiled == [compiled[0]] * 8 and compiled[0] > 0
    losses = torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64)  # of eight steps, an epoch
    assert abs(losses.mean(1).diff()) > 0.05
    assert ranks[0]["mean"] == ranks[1]["mean"] == pytest.approx(losses.mean().item(), rel=1e-12)
    assert ranks[0]["stopped"] == ranks[1]["stopped"] and " at step 12 of 24;" in ranks[0]["stopped"]


def test_torchrun_trains(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import torch.distributed as dist
from minivim.train import *
train(TrainConfig(out={str(tmp_path / "run")!r}, **{PLAIN!r}))
assert not dist.is_initialized()  # the processes are left as they were found
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(records_of(tmp_path / "run")) == 1


def torchrun(*arguments: str, program: Sequence[str] = ("-m", "minivim")) -> subprocess.Popen:
    """`minivim train`, or another program with its arguments, in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    settings = ["--depth", "1", "--embed-dim", "16", "--patch-size", "4", "--threads", "1", "--no-progress"]
    return subprocess.Popen([*command, "train", *settings, *arguments], stderr=subprocess.PIPE, text=True)


def test_what_is_wrong_is_told_by_one_of_the_processes(tmp_path):
    err = torchrun("--out", str(tmp_path / "run"), "--lr", "1e38", "--warmup", "0").communicate(timeout=300)[1]
    assert err.count("minivim: error: ") == 1, err
    assert "minivim: error: loss is " in err
    ours = [line for line in err.splitlines() if "minivim/" in line]
    assert not ours, err  # torchrun's own traceback is of torchrun


def test_a_notice_is_given_once(tmp_path):
    for part in ("train", "test"):
        striped_folder(tmp_path / "stripes" / part, 40)
    settings = ["--epochs", "1", "--batch-size", "20", "--val-share", "0"]
    run = torchrun("--data", str(tmp_path / "stripes"), "--out", str(tmp_path / "run"), "--img-size", "16",
                   "--model", "vim_nano_patch2_8", *settings)  # fmt: skip
    err = run.communicate(timeout=300)[1]
    assert run.returncode == 0, err
    assert err.count("40 of 40 test images are also training images") == 1, err


ONE_FAILS = """
import os, sys
from minivim import cli
from minivim.train.loop import Trainer

def step(self, images, labels, original=Trainer.train_step):
    if self.step == 3 and self.team.rank == 1:
        raise ValueError("image 'a.png' could not be read: it is no image")
    original(self, images, labels)

Trainer.train_step = step
sys.exit(cli.main(sys.argv[1:]))
"""


def test_the_error_of_one_process_ends_all_with_one_sentence(tmp_path):
    """The other one waits for it in the midst of a step."""
    (tmp_path / "script.py").write_text(ONE_FAILS)
    run = torchrun("--out", str(tmp_path / "run"), program=[str(tmp_path / "script.py")])
    err = run.communicate(timeout=300)[1]
    assert run.returncode != 0
    ours = [line for line in err.splitlines() if "minivim" in line and "torch" not in line]
    assert ours.count("minivim: error: image 'a.png' could not be read: it is no image") == 1, err
    assert err.count("minivim: error: ") == 1 and not [line for line in ours if "minivim/" in line], err
    assert not (tmp_path / "run" / ".minivim.lock").exists()


def test_a_signal_to_torchrun_saves_the_state_of_all(tmp_path):
    """torchrun passes it on to both; they stop after the same step, and the run goes on from there."""
    out = tmp_path / "run"
    process = torchrun("--out", str(out), "--epochs", "1000", "--save-seconds", "0")
    while not (out / "state.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    err = process.communicate(timeout=300)[1]
    assert err.count("stopped by SIGTERM after step ") == err.count(f"minivim train --out {out} --resume") == 1, err
    step = int(err.partition("after step ")[2].split()[0])
    assert torch.load(out / "state.pt", weights_only=True)["step"] == step > 0
    assert not (out / ".minivim.lock").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_fail_the_first_one_tells(rank, monkeypatch):
    """The others end with code 2; what the backends say of a lost process becomes a sentence of ours."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    lost = (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), dist.DistBackendError("NCCL"))
    with pytest.raises(ConnectionError, match=f"process {rank} of the run misses another one"):
        with processes.told_once(rank):
            raise lost[rank]
    with pytest.raises(SystemExit) as second, processes.told_once(1 - rank):
        raise ValueError("image 'a.png' could not be read")
    assert second.value.code == 2


def test_without_the_process_that_keeps_count_every_error_is_told(monkeypatch):
    def gone():
        raise ValueError("Default process group has not been initialized")

    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", gone)
    with pytest.raises(MemoryError), processes.told_once(1):
        raise MemoryError


def test_what_all_processes_meet_is_told_by_the_first(monkeypatch):
    for rank, kind in (("0", ValueError), ("1", SystemExit)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(kind), processes.met_by_all():
            raise ValueError("warmup is 7; it must be from 0 to 1")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's rule")
def test_freed_memory_is_kept_for_the_next_tensors():
    """24 MiB in blocks of 4, taken and given back again and again: no page comes from the system a second time."""
    code = """
import resource, torch
from minivim.processes import keep_freed_memory
keep_freed_memory()
def use():
    blocks = [torch.ones(2**20) for _ in range(6)]
for _ in range(3):
    use()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(3)))  # the system may once move a block; it does not do so again and again
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pages = 10 * 24 * 2**20 // mmap.PAGESIZE
    assert int(found.stdout) < 0.01 * pages


def test_a_rank_makes_its_gpu_the_current_one_before_it_touches_any(monkeypatch):
    """Also a lone process that was told to use the second GPU."""
    touched = []
    monkeypatch.setattr(processes, "usable_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: touched.append(f"current {device}"))
    monkeypatch.setattr(torch, "empty", lambda size, device: touched.append(f"used {device}"))
    for name, rank, expected in (("cuda", "3", "cuda:3"), ("cuda:1", "0", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with processes.join_team(name) as team:
            assert str(team.device) == expected
        assert touched == [f"current {expected}", f"used {expected}"]
        touched.clear()
    with processes.join_team("cpu") as team:
        assert [team.device, processes.choose_device("cuda")] == [torch.device("cpu"), torch.device("cuda")]
    assert touched == ["used cpu", "used cuda"]  # who only evaluates keeps the current GPU


def test_a_gpu_that_is_not_here_is_refused_by_name(monkeypatch):
    def missing(device):
        raise RuntimeError("invalid device ordinal\nand a long story")

    monkeypatch.setattr(processes, "usable_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", missing)
    monkeypatch.setenv("LOCAL_RANK", "5")
    with pytest.raises(ValueError, match="^device is 'cuda:5'; it must be .* this machine has: cpu, cuda$"):
        processes.join_team("cuda").__enter__()
