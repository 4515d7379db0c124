"""Models by name: every name builds, overrides reach the configuration, mistakes are named."""

import re

import pytest
import torch

from minivim import create_model, list_models


def test_every_listed_model_can_be_built_and_the_small_ones_run():
    assert {"vim_tiny_patch16_224", "vim_small_patch16_224_stride8", "vim_base_patch16_224_stride8"} < set(
        list_models()
    )
    with torch.device("meta"):
        for name in list_models():
            model = create_model(name, depth=1)
            assert model.default_cfg["input_size"][1] == int(re.search(r"_(224|32|8)(_|$)", name)[1])
    nano = create_model("vim_nano_patch2_8")
    assert nano.config.num_patches == 16
    assert nano(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_overrides_reach_the_configuration():
    model = create_model("vim_nano_patch2_8", depth=1, cls_token="double", num_classes=3)
    assert (len(model.blocks), model.config.cls_token, model.head.out_features) == (1, "double", 3)


def test_unknown_model_is_an_error_that_lists_the_names():
    with pytest.raises(ValueError, match=r"name is 'vim_tiny'; it must be one of .*vim_nano_patch2_8.*deit_base"):
        create_model("vim_tiny")
    with pytest.raises(ValueError, match=r"did you mean 'vim_tiny_patch16_224'\?"):
        create_model("vim_tinny_patch16_224")
