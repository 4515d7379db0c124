"""The training loop: its parts obey their laws, and a run learns and writes what it should."""

import math
import threading
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minivim import create_model
from minivim.models import checkpoints
from minivim.processes import Team
from minivim.train.loop import Trainer, train
from minivim.train.prediction import evaluate
from minivim.train.recipes import TrainConfig, resolve
from minivim.train.screen import Screen
from minivim.train.step import (
    accumulate_gradients,
    compute_gradients,
    decay_groups,
    epoch_batches,
    learning_rate,
    seed_from,
)
from minivim.train.tasks import Classification, build_model
from tests.train.small_runs import records_of, same, small, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


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
    orders = {epoch_batches(103, 10, seed, epoch).numpy().tobytes() for seed in range(3) for epoch in range(5)}
    assert len(orders) == 15
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
    trainer = Trainer(resolve(small(tmp_path, ema=0.5)), small_data, Team(0, 1, torch.device("cpu")))
    parameter, average = trainer.model.head.bias, trainer.average.module.head.bias
    parameter.data.fill_(1.0)
    trainer.update_average()
    assert average.tolist() == [1.0, 1.0]  # the first update copies
    expected = 1.0
    for step, value in ((1, 3.0), (2, -1.0), (50, 2.0)):
        trainer.step = step
        parameter.data.fill_(value)
        trainer.update_average()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average[0].item() == pytest.approx(expected)


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
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]
    assert result.history[-1]["val_accuracy"] > 0.4 and len(result.data.val_labels) == 400


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
    best = evaluate(result.out / "best.safetensors", small_data)
    assert best["accuracy"] == pytest.approx(result.history[-1]["best_test_accuracy"])
    assert best["loss"] == pytest.approx(result.history[-1]["best_test_loss"], rel=1e-5)


def score_as(monkeypatch, scores: dict[int, float]) -> list[tuple[int, str]]:
    """Give each epoch's validation that accuracy; the list gets (epoch, part) of whatever is evaluated."""
    asked, original = [], Classification.evaluate

    def evaluate(self, model, part):
        found = original(self, model, part)
        asked.append((len(asked) + 1, part))
        return found | ({"val_accuracy": scores[len(asked)]} if part == "val" else {})

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    return asked


def test_best_is_chosen_on_the_validation_images_and_the_test_images_are_read_at_the_end(
    small_data, tmp_path, monkeypatch
):
    asked = score_as(monkeypatch, {1: 0.5, 2: 0.9, 3: 0.9})
    result = train(small(tmp_path))
    assert asked == [(1, "val"), (2, "val"), (3, "val"), (4, "test"), (5, "test")]
    last = result.history[-1]
    assert last["best_epoch"] == 2
    assert not [name for record in result.history[:-1] for name in record if "test" in name]
    monkeypatch.undo()
    second, final = (evaluate(result.out / f"{name}.safetensors", small_data) for name in ("best", "last"))
    extra = checkpoints.load_extra(result.out / "best.safetensors")
    assert extra["step"] == 16 and extra["recipe"] == asdict(resolve(small(tmp_path)))
    assert second["loss"] == pytest.approx(last["best_test_loss"], rel=1e-5)
    assert final["loss"] == pytest.approx(last["test_loss"], rel=1e-5) != pytest.approx(second["loss"], rel=1e-5)


def test_without_validation_images_nothing_is_chosen(small_data, tmp_path, monkeypatch):
    bare = replace(small_data, val_images=None, val_labels=None)
    monkeypatch.setattr("minivim.train.loop.load_data", lambda *args, **options: bare)
    asked = score_as(monkeypatch, {})
    result = train(small(tmp_path))
    assert asked == [(1, "test")] and result.history[-1]["best_epoch"] == 3
    assert result.history[-1]["best_test_loss"] == result.history[-1]["test_loss"]
    best, last = (checkpoints.read_file(result.out / f"{name}.safetensors")[0] for name in ("best", "last"))
    assert same(best, last)


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


def test_what_is_trained_goes_on_in_training_mode_after_an_evaluation(small_data, tmp_path):
    """Without an average it is the model itself that is evaluated; drop path must be on afterwards."""
    trainer = Trainer(resolve(small(tmp_path, ema=0.0)), small_data, Team(0, 1, torch.device("cpu")))
    for training in (True, False):
        trainer.model.train(training)
        trainer.task.evaluate(trainer.model, "val")
        assert trainer.model.training == training


def test_each_process_draws_its_own_random_numbers(small_data, tmp_path):
    weights = []
    for rank in (0, 0, 1):
        trainer = Trainer(resolve(small(tmp_path, shift=2.0)), small_data, Team(rank, 1, torch.device("cpu")))
        trainer.train_step(small_data.train_images[:20], small_data.train_labels[:20])
        weights.append(trainer.model.state_dict())
    assert same(weights[0], weights[1]) and not same(weights[0], weights[2])


def test_a_run_says_what_it_uses(small_data, tmp_path, capsys):
    train(small(tmp_path, epochs=2, progress=True))
    said = capsys.readouterr().out
    for part in ("parameters", "tokens", "device cpu", "1 threads", "scan backend", "budget:", "test accuracy"):
        assert part in said


def test_the_budget_counts_no_compilation(small_data, tmp_path, capsys):
    """A first step of 20 s, then seven of 1 s: 8 s for an epoch of eight, said once."""
    trainer = Trainer(resolve(small(tmp_path, progress=True)), small_data, Team(0, 1, torch.device("cpu")))
    trainer.first, trainer.step, trainer.seconds = (1, 20.0), 8, 27.0
    trainer.tell_budget()
    trainer.step, trainer.seconds = 16, 35.0
    trainer.tell_budget()
    said = capsys.readouterr().out.splitlines()
    assert said == ["budget: 8.0 s for an epoch, about 16 s for the rest"]


def test_a_first_step_that_takes_long_is_explained(tmp_path, monkeypatch):
    said, heard = [], threading.Event()
    screen = Screen(resolve(small(tmp_path)), leads=True)
    monkeypatch.setattr(screen, "say", lambda line: (said.append(line), heard.set()))
    with screen.patient("quick"):
        pass
    monkeypatch.setattr("minivim.train.screen.PATIENCE", 0.01)
    with screen.patient("slow"):
        assert heard.wait(60)
    assert said == ["slow"]


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(small_data, tmp_path):
    with pytest.raises(
        ValueError, match=r"loss is (nan|inf) .* at step \d+ of 24; .* try a smaller lr \(it is 1e\+30\)"
    ):
        train(small(tmp_path, lr=1e30, warmup=0.0, grad_clip=0.0))


class Recorded(TorchDispatchMode):
    """The operators that run inside, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::item"}


@pytest.mark.parametrize("preset", ["digits", "cifar10", "imagenet"])
def test_a_step_never_waits_for_the_device(preset, small_data, tmp_path, unchecked):
    """On a GPU each number that Python looks at is a stop; the loss is looked at when somebody asks."""
    recipe = resolve(TrainConfig(data="digits", preset=preset))
    augmented = {name: getattr(recipe, name) for name in ("crop", "flip", "rotate", "zoom", "shift", "jitter", "erase")}
    augmented |= {name: getattr(recipe, name) for name in ("smoothing", "mixup", "cutmix", "drop_path", "bf16")}
    config = resolve(small(tmp_path, **augmented, backend="chunked"))
    trainer = Trainer(config, small_data, Team(0, 1, torch.device("cpu")))
    images, labels = small_data.train_images[:20], small_data.train_labels[:20]
    for _ in range(4):  # the coin between mixup and cutmix falls both ways
        with Recorded() as recorded:
            trainer.train_step(images, labels)
        assert not WAITS & set(recorded.names)
    assert len(recorded.names) > 100
    with Recorded() as recorded:
        float(trainer.unseen[0][0])
    assert WAITS & set(recorded.names)
    trainer.look()
    assert trainer.loss_sum > 0 and trainer.unseen == []


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_never_saved(small_data, tmp_path):
    trainer = Trainer(resolve(small(tmp_path)), small_data, Team(0, 1, torch.device("cpu")))
    trainer.open()
    images, labels = small_data.train_images[:20], small_data.train_labels[:20]
    trainer.train_step(images, labels)
    trainer.train_step(images, labels)
    trainer.model.head.bias.data.fill_(math.nan)
    trainer.train_step(images, labels)
    trainer.train_step(images, labels)
    with pytest.raises(
        ValueError, match=r"loss is nan and the gradient's norm nan at step 3 of 24; both must be finite"
    ):
        trainer.save_state()
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize("parts", [1, 3, 8, 20])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1)
    images, targets = torch.randn(20, 3, 8, 8), torch.rand(20, 10).softmax(1)
    whole = F.cross_entropy(model(images), targets)
    wanted = torch.autograd.grad(whole, list(model.parameters()))
    seen = []
    model.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    loss = accumulate_gradients(model, images, targets, parts=parts)
    assert len(seen) == parts and sum(seen) == 20 and max(seen) - min(seen) <= 1
    torch.testing.assert_close(loss, whole.detach())
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp_min(1e-3)


def test_accumulate_changes_the_parts_and_not_the_result(small_data, tmp_path):
    losses = []
    for parts in (1, 4):
        result = train(small(tmp_path / str(parts), epochs=1, accumulate=parts))
        losses.append(result.history[-1]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="accumulate is 21; it must be at most the images of a process, 20"):
        train(small(tmp_path / "more", accumulate=21))


def test_the_ablations_fields_reach_the_model(small_data):
    changes = {"directions": 1, "scan_order": "snake", "pos_embed": False, "init": "official", "cls_token": "max"}
    config = resolve(TrainConfig(data="digits", **changes))
    built = build_model(config, small_data).config
    assert {name: getattr(built, name) for name in changes} == changes
