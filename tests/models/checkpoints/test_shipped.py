"""The weights that come with the package: they load, know what they are, and say how they were made."""

import json
import re
from pathlib import Path

import pytest
import torch

from minivim.models import checkpoints
from minivim.models.checkpoints.shipped import NAMES

pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parents[3]
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_small_and_a_classifier_of_cifar10(name):
    path = checkpoints.shipped(name)
    model, extra = checkpoints.load_with_extra(path)
    tensors = checkpoints.read_file(path)[0].values()
    assert path.stat().st_size <= 8e6 and {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert type(model).__name__ == {"vim": "VisionMamba", "deit": "DeiT"}[name.partition("_")[0]]
    assert extra["classes"] == CLASSES and model.config.image_shape == (32, 32)
    logits = model.eval()(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_quotes_the_run_that_made_the_weights(name):
    card = (ROOT / "data" / f"{name}.md").read_text()
    recipe = checkpoints.load_extra(checkpoints.shipped(name))["recipe"]
    runs = json.loads((ROOT / "docs" / "measurements" / "09_cifar10.json").read_text())["runs"]
    kind = {"vim": "Vim", "deit": "DeiT"}[name.partition("_")[0]]
    (run,) = (run for run in runs if (run["name"], run["seed"]) == (kind, recipe["seed"]))
    assert f"--preset {recipe['preset']} --seed {recipe['seed']}" in card and run["flags"] in card
    assert f"{run['test_accuracy']:.2%}".replace("%", " %") in card and f"{run['parameters']:,}" in card
    assert re.search(rf"minivim eval \S*{name}\.safetensors", card)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="^name is 'vim'; it must be one of 'vim_cifar10'"):
        checkpoints.shipped("vim")
