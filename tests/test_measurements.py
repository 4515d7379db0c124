"""The committed measurements: each says where it comes from, and holds what its command would make."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from minivim import create_model
from minivim.data import ImageData
from minivim.train import TrainConfig, build_model, decay_groups, resolve

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measurements"


def script(name):
    """A command beside the measurements, as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"measurement_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_measurement_names_machine_command_date_and_versions(path):
    page = json.loads(path.read_text())
    assert all(page[key] for key in ("machine", "command", "date"))
    assert page.get("versions", page)["torch"]


@pytest.mark.parametrize(("name", "seeds"), [("08_orders", 4), ("09_ablations", 3)])
def test_each_variant_has_been_run_with_each_seed(name, seeds):
    module, page = script(name), json.loads((FOLDER / f"{name}.json").read_text())
    found = sorted((run["name"], run["seed"]) for run in page["runs"])
    assert found == sorted((variant, seed) for variant in module.EXPERIMENTS for seed in range(seeds))
    assert page["settings"] == module.COMMON


def test_the_flags_of_a_run_say_what_was_changed():
    pytest.importorskip("tyro")
    from minivim.cli.flags import parse

    module = script("09_ablations")
    for run in json.loads(module.OUT.read_text())["runs"]:
        given = parse(TrainConfig, run["flags"].split(), "train")
        assert given == TrainConfig(**module.EXPERIMENTS[run["name"]])


def test_variants_can_be_trained_and_differ_from_the_baseline():
    module = script("09_ablations")
    baseline = resolve(TrainConfig(**module.COMMON, out="runs/x"))
    for name, changes in module.EXPERIMENTS.items():
        config = resolve(TrainConfig(**module.COMMON, **changes, out="runs/x"))
        assert (config == baseline) == (name == "baseline")


def test_the_last_variant_adds_a_log_and_nothing_else_to_what_decays():
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with script("09_ablations").decay_of_a_log():
        decays, spared = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.5))
    assert spared | decays == set(names.values())
    assert model.no_weight_decay() - spared == {n for n in names.values() if n.endswith("A_log")}


def test_the_last_variant_is_trained_and_ends_with_slower_rates(monkeypatch):
    for package in ("safetensors", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    module = script("09_ablations")
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "epochs": 2}
    monkeypatch.setattr(module, "COMMON", module.COMMON | sizes)
    spared, decayed = (
        module.record(name, 0)["decay_rates"] for name in ("weight decay 1", "weight decay 1, A_log too")
    )
    assert decayed[-1] < spared[-1] - 0.5


def test_measuring_keeps_what_is_there_and_adds_what_is_missing(tmp_path):
    measure, out, asked = script("trainings").measure, tmp_path / "runs.json", []

    def record(name, seed):
        asked.append((name, seed))
        return {"name": name, "seed": seed}

    measure(out, "command", {"epochs": 1}, ["a", "b"], 1, record)
    assert asked == [("a", 0), ("b", 0)]
    measure(out, "command", {"epochs": 1}, ["a", "b", "c"], 2, record)
    assert asked[2:] == [("c", 0), ("a", 1), ("b", 1), ("c", 1)]
    page = json.loads(out.read_text())
    assert [(run["name"], run["seed"]) for run in page["runs"]] == asked
    assert page["settings"] == {"epochs": 1} and page["command"] == "command"


def test_the_runs_on_cifar10_are_those_of_their_commands():
    pytest.importorskip("tyro")
    from minivim.cli.flags import parse

    for run in json.loads(script("09_cifar10").OUT.read_text())["runs"]:
        words = ["--data", "x", "--preset", run["preset"], "--seed", str(run["seed"]), *run["flags"].split()]
        config = resolve(parse(TrainConfig, words, "train"))
        assert len(run["train_loss"]) == len(run["val_accuracy"]) == config.epochs
        assert run["val_accuracy"][run["best_epoch"] - 1] == max(run["val_accuracy"])
        with torch.device("meta"):
            model = build_model(config, cifar_like())
        assert sum(p.numel() for p in model.parameters()) == run["parameters"]
        assert config.model.startswith(run["name"].lower())


def cifar_like():
    """Ten classes of images of 32 pixels, without a pixel."""
    images, labels = torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    return ImageData("x", images, labels, images, labels, tuple("abcdefghij"), (0.5,) * 3, (0.5,) * 3)
