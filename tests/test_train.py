"""The training loop: it learns, it stops and resumes without a trace, and several processes do the work of one."""

import json
import math
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import minivim.train as train_module
from minivim import checkpoints, create_model
from minivim.data import ImageData, channel_statistics
from minivim.images import LazyImages
from minivim.recipes import BASE, PRESETS, TrainConfig, given, resolve
from minivim.train import (
    Trainer,
    build_model,
    compute_gradients,
    decay_groups,
    epoch_batches,
    evaluate,
    learning_rate,
    predict,
    seed_from,
    train,
)  # fmt: skip

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

TINY = {
    "model": "vim_tiny_patch4_32",
    "embed_dim": 8,
    "depth": 1,
    "patch_size": 16,
    "threads": 1,
}  # 4 patches, one block


def stripes(count: int, seed: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright rows or bright columns in noise: learnt in a few steps."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, size, size), generator=g)
    images[labels == 0, :, ::2] += 120
    images[labels == 1, :, :, ::2] += 120
    return images.to(torch.uint8), labels


def small_bundle() -> ImageData:
    """160 training and 40 test images."""
    (images, labels), test = stripes(160, 0), stripes(40, 1)
    return ImageData("stripes", images, labels, *test, ("rows", "columns"), *channel_statistics(images))


@pytest.fixture
def small_data(monkeypatch) -> ImageData:
    """The small bundle, given to `train` whatever it asks for."""
    data = small_bundle()
    monkeypatch.setattr(train_module, "load_data", lambda *args, **options: data)
    return data


def small(tmp_path, **changes) -> TrainConfig:
    settings = {
        "data": "digits",
        "model": "vim_nano_patch2_8",
        "embed_dim": 16,
        "depth": 1,
        "patch_size": 4,
        "epochs": 3,
        "batch_size": 20,
        "out": str(tmp_path / "run"),
        "threads": 1,
        "progress": False,
        "rotate": 0.0,
        "zoom": 0.0,
        "shift": 0.0,
    }
    return TrainConfig(**{**settings, **changes})


def tensors_of(out) -> dict[str, torch.Tensor]:
    return checkpoints.read_file(out / "last.safetensors")[0]


def records_of(out) -> list[dict]:
    """metrics.jsonl without the times, which differ from run to run."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_schedule_rises_linearly_falls_as_a_cosine_and_ends_where_it_should():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.05) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert max(rates) == 2.0 and rates[9] == rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[10 + 45] + rates[10 + 44] == pytest.approx(2 * (2.0 + 0.1) / 2, rel=1e-6)  # symmetric about the middle
    assert learning_rate(0, 1, 2.0, 0.0, 0.05) == 2.0


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_only_weight_matrices_decay(name):
    model = create_model(name, depth=1)
    decaying, spared = decay_groups(model, 0.3)
    assert decaying["weight_decay"] == 0.3 and spared["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    decaying, spared = ({names[id(p)] for p in group["params"]} for group in (decaying, spared))
    assert decaying | spared == set(names.values()) and not decaying & spared
    for name in names.values():
        last = name.rpartition(".")[2]
        never = last in ("A_log", "D", "bias", "conv_bias", "cls_token", "pos_embed") or "norm" in name
        assert (name in spared) == never, name


def test_every_epoch_sees_each_image_once_in_another_order():
    first, second = epoch_batches(103, 10, 0, 0), epoch_batches(103, 10, 0, 1)
    assert first.shape == (10, 10) and len(first.unique()) == 100
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_batches(103, 10, 0, 0))
    assert not torch.equal(first, epoch_batches(103, 10, 1, 0))
    shares = [epoch_batches(103, 10, 0, 0, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(shares, 1), first)


def test_seeds_differ_in_every_part():
    seeds = {seed_from("step", seed, step, rank) for seed in range(5) for step in range(50) for rank in range(3)}
    assert len(seeds) == 750 and all(0 <= seed < 2**63 for seed in seeds)


def test_gradients_are_those_of_the_mean_cross_entropy():
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    loss = compute_gradients(model, images, F.one_hot(labels, 10).float())
    expected = F.cross_entropy(model(images), labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_average_is_the_running_mean_with_a_short_memory_at_first(small_data, tmp_path):
    trainer = Trainer(resolve(small(tmp_path, ema=0.5)), small_data, train_module.Team(0, 1, torch.device("cpu")))
    parameter, average = trainer.model.head.bias, trainer.average.module.head.bias
    parameter.data.fill_(1.0)
    trainer.average.update_parameters(trainer.model)
    assert average.tolist() == [1.0, 1.0]  # the first update copies
    expected = 1.0
    for step, value in ((1, 3.0), (2, -1.0), (50, 2.0)):
        trainer.step = step
        parameter.data.fill_(value)
        trainer.average.update_parameters(trainer.model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average[0].item() == pytest.approx(expected)


# ---- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_a_complete_configuration_and_explicit_fields_win(preset):
    config = resolve(TrainConfig(preset=preset, data="somewhere", epochs=7))
    assert config.epochs == 7 and config.preset == preset and config.data == "somewhere"
    assert resolve(config) == config
    for name, value in {**given(BASE), **given(PRESETS[preset])}.items():
        if name not in ("epochs", "data"):
            assert getattr(config, name) == value
    optional = {"img_size", "patch_size", "embed_dim", "depth", "expand", "state_dim", "cls_token", "device", "threads"}
    assert {name for name, value in vars(config).items() if value is None} <= optional


def test_the_preset_is_the_datas_own_unless_one_is_named():
    assert resolve(TrainConfig()).preset == "digits"
    assert resolve(TrainConfig(data="cifar10")).preset == "cifar10"
    assert resolve(TrainConfig(data="cifar10", preset="cifar10_cpu")).preset == "cifar10_cpu"
    assert resolve(TrainConfig(data="a/folder")).preset == "base"


def test_the_overrides_reach_the_model(small_data):
    config = resolve(
        TrainConfig(expand=1, state_dim=4, cls_token="none", embed_dim=24, depth=3, patch_size=4, drop_path=0.3)
    )
    found = build_model(config, small_data).config
    assert (found.expand, found.state_dim, found.cls_token, found.embed_dim, found.depth) == (1, 4, "none", 24, 3)
    assert (found.patch_size, found.drop_path_rate, found.num_classes, found.img_size) == (4, 0.3, 2, 8)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "base"])
def test_every_preset_builds_its_model(preset):
    size = {"digits": 8, "imagenet": 224}.get(preset, 32)
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    data = ImageData("x", images, labels, images, labels, ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    with torch.device("meta"):
        model = build_model(resolve(TrainConfig(preset=preset, data="x")), data)
    assert model.num_classes == 3 and model.config.image_shape == (size, size)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_vim_learns_to_tell_shapes_apart(tmp_path):
    config = TrainConfig(
        data="shapes", embed_dim=32, depth=1, patch_size=8, epochs=4, lr=5e-3, smoothing=0.0, progress=False,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(config)
    losses = [record["train_loss"] for record in result.history]
    assert losses[0] < math.log(10) + 0.2 and all(a > b for a, b in zip(losses, losses[1:], strict=False))
    assert result.accuracy > 0.4  # chance is 0.1
    assert result.history[-1]["test_loss"] < result.history[0]["test_loss"]


@pytest.mark.parametrize("model", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_vim_and_deit_train_by_the_same_command_and_write_the_same_files(small_data, tmp_path, model):
    width = {"embed_dim": 16} if model.startswith("vim") else {"embed_dim": 48}
    result = train(small(tmp_path, model=model, ema=0.9, lr=1e-2, **width))
    assert result.accuracy > 0.8
    assert {path.name for path in result.out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "state.pt",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
    }
    assert [record["epoch"] for record in records_of(result.out)] == [1, 2, 3]
    assert (result.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    scores = evaluate(result.out / "last.safetensors", small_data)
    assert scores["accuracy"] == pytest.approx(result.accuracy) and scores["images"] == 40
    assert scores["loss"] == pytest.approx(result.history[-1]["test_loss"], rel=1e-5)
    assert sum(scores["per_class"].values()) / 2 == pytest.approx(scores["accuracy"])
    best = evaluate(result.out / "best.safetensors", small_data)["accuracy"]
    assert best == pytest.approx(max(record["test_accuracy"] for record in result.history))


def test_the_global_random_numbers_and_threads_are_left_as_they_were(small_data, tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(small(tmp_path, epochs=1))
    assert torch.equal(before, torch.get_rng_state()) and threads == torch.get_num_threads()


def test_all_that_regularises_at_once_in_bfloat16(small_data, tmp_path):
    result = train(small(tmp_path, bf16=True, drop_path=0.2, mixup=0.5, cutmix=0.5, crop=1, jitter=0.2, erase=0.2,
                         depth=2, epochs=1))  # fmt: skip
    assert math.isfinite(result.history[-1]["train_loss"])
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_without_average_the_weights_themselves_are_kept(small_data, tmp_path):
    result = train(small(tmp_path, ema=0.0, epochs=1))
    state = torch.load(result.out / "state.pt", weights_only=True)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in tensors_of(result.out).items())


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


def cut_after(monkeypatch, steps: int) -> None:
    """Let `train_step` raise InterruptedError instead of doing step number `steps`."""
    original = Trainer.train_step

    def step(self, images, labels):
        if self.step == steps:
            raise InterruptedError
        original(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", step)


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


def train_on_stripes(config: TrainConfig) -> None:
    """What the processes that get killed do."""
    data = small_bundle()
    train_module.load_data = lambda *args, **options: data
    train(config)


def test_ten_kills_leave_no_trace(tmp_path, monkeypatch):
    """SIGKILL at ten random moments, resumed each time: the same weights, optimizer and metrics as without a kill."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")  # imports everything once, so that its processes start fast
    context.set_forkserver_preload(["test_train", "torch._dynamo", "safetensors.torch", "matplotlib.figure"])

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


def same(a, b) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- several processes -----------------------------------------------------------------------------------------------


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
    torch.save(
        {"gradients": [p.grad for p in model.parameters()], "weights": result.model.state_dict(),
         "history": result.history},
        f"{folder}/{rank}.pt",
    )  # fmt: skip
    dist.destroy_process_group()


PLAIN = dict(TINY, data="shapes", epochs=1, batch_size=400, flip=0.0, crop=0, smoothing=0.0, progress=False)


def test_two_processes_do_the_work_of_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = same_model()
    compute_gradients(model, *joint_batch())
    for parameter, *gradients in zip(model.parameters(), *(rank["gradients"] for rank in ranks), strict=True):
        for gradient in gradients:
            assert torch.allclose(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    alone = train(TrainConfig(out=str(tmp_path / "alone"), **PLAIN)).history[-1]
    for rank in ranks:
        assert rank["history"][-1]["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        assert rank["history"][-1]["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-3)
    assert len(records_of(tmp_path / "run")) == 1  # only one of the two writes


def test_torchrun_trains(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"from minivim.train import *\ntrain(TrainConfig(out={str(tmp_path / 'run')!r}, **{PLAIN!r}))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(records_of(tmp_path / "run")) == 1


# ---- a trained checkpoint at work ------------------------------------------------------------------------------------


def test_predict_names_what_is_in_image_files(small_data, tmp_path):
    from PIL import Image

    result = train(small(tmp_path, lr=1e-2, ema=0.9))
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(small_data.test_images[index].permute(1, 2, 0).numpy()).save(paths[-1])
    answers = predict(result.out / "best.safetensors", paths)
    assert [answer[0][0] for answer in answers] == ["rows", "columns"] * 2
    for answer in answers:
        assert len(answer) == 2 and answer[0][1] >= answer[1][1]
        assert sum(probability for _, probability in answer) == pytest.approx(1, abs=1e-5)


def test_tensorboard_is_written_on_request(small_data, tmp_path):
    pytest.importorskip("tensorboard")
    result = train(small(tmp_path, epochs=1, tensorboard=True))
    assert list(result.out.glob("events.out.tfevents.*"))


def test_a_run_says_what_it_uses(small_data, tmp_path, capsys):
    train(small(tmp_path, epochs=2, progress=True))
    said = capsys.readouterr().out
    for part in ("parameters", "tokens", "device cpu", "1 threads", "scan backend", "budget:", "test accuracy"):
        assert part in said
    assert train_module.load_data  # the fixture's


# ---- what is refused -------------------------------------------------------------------------------------------------

BAD = {
    "epochs": (0, "epochs is 0; it must be at least 1"),
    "batch_size": (161, "batch_size is 161; it must be at most the number of training images, 160"),
    "lr": (-1.0, "lr is -1.0; it must be at least 0"),
    "lr_end": (1.5, "lr_end is 1.5; it must be from 0 to 1"),
    "warmup": (2.0, "warmup is 2.0; it must be from 0 to 1"),
    "weight_decay": (-0.1, "weight_decay is -0.1"),
    "ema": (1.0, "ema is 1.0; it must be from 0 to"),
    "flip": (1.1, "flip is 1.1; it must be from 0 to 1"),
    "crop": (-1, "crop is -1; it must be at least 0"),
    "mixup": (float("nan"), "mixup is nan; it must be at least 0"),
    "smoothing": ("a lot", "smoothing is 'a lot'; it must be a number"),
    "drop_path": (1.0, "drop_path is 1.0"),
    "threads": (0, "threads is 0; it must be at least 1"),
    "preset": ("cifar", "preset is 'cifar'; it must be one of base, digits"),
    "model": ("vim_huge", "'vim_huge'; it must be one of"),
    "embed_dim": (0, "embed_dim is 0; it must be at least 1"),
    "patch_size": (3, "img_size is 8; each side must be a multiple of patch_size 3"),
    "cls_token": ("left", "cls_token is 'left'; it must be one of"),
    "backend": ("cuda", "backend"),
    "device": ("cuda:77", "device is 'cuda:77'; it must be a device that this machine has"),
}


@pytest.mark.parametrize("field", BAD)
def test_an_impossible_setting_is_refused_in_one_sentence(small_data, tmp_path, unchecked, field):
    value, message = BAD[field]
    with pytest.raises((ValueError, TypeError)) as caught:
        train(small(tmp_path, **{field: value}))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(small_data, tmp_path):
    with pytest.raises(
        ValueError, match=r"loss is (nan|inf) .* at step \d+ of 24; .* try a smaller lr \(it is 1e\+30\)"
    ):
        train(small(tmp_path, lr=1e30, warmup=0.0, grad_clip=0.0))


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


def test_checkpoints_and_images_that_do_not_fit_are_refused(small_data, tmp_path):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1)
    checkpoints.save(model, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="must be written by minivim train"):
        evaluate(tmp_path / "bare.safetensors", small_data)
    with pytest.raises(ValueError, match="must be an existing file"):
        evaluate(tmp_path / "missing.safetensors", small_data)
    extra = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3}
    checkpoints.save(model, tmp_path / "good.safetensors", extra)
    with pytest.raises(ValueError, match="data has the classes .*'rows'.*; they must be the model's: .*'a'"):
        evaluate(tmp_path / "good.safetensors", small_data)
    with pytest.raises(ValueError, match="image is .*nothing.png'; it must be an existing file"):
        predict(tmp_path / "good.safetensors", [tmp_path / "nothing.png"])
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match="image .*text.png' could not be read"):
        predict(tmp_path / "good.safetensors", [tmp_path / "text.png"])
    with pytest.raises(ValueError, match="images is empty"):
        predict(tmp_path / "good.safetensors", [])
