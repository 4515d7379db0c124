"""Each option of the official code: applied, and equal to a slow reference; or refused by its name; never ignored."""

import warnings
from argparse import Namespace

import pytest
import torch

from minivim import VimConfig, create_model, load_official
from minivim.models.checkpoints.options import name_options
from tests.models.checkpoints.reference import DEFAULTS, official_forward, official_state

OFFICIAL = {  # every name that the official repository has registered with this structure, and what it stands for
    "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": (192, 16),
    "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": (192, 8),
    "vim_small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": (384, 16),
    "vim_small_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": (384, 8),
    "vim_base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2": (768, 16),
    "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2": (192, 8),
}
TINY = next(iter(OFFICIAL))
APPLIED = [
    {},
    {"if_divide_out": False},
    {"norm_epsilon": 1e-1},
    {"use_middle_cls_token": False},
    {"use_double_cls_token": True},
    {"if_cls_token": False},
    {"if_cls_token": False, "final_pool_type": "all"},
    {"final_pool_type": "all"},  # a class token comes before it
    {"final_pool_type": "none"},
    {"bimamba_type": "none"},
    {"bimamba_type": "none", "if_divide_out": False},  # nothing to divide
    {"if_abs_pos_embed": False, "img_size": 12},
    {"stride": 2},
    {"stride": 2, "img_size": 12, "use_middle_cls_token": False, "if_divide_out": False, "norm_epsilon": 1e-2},
    {"channels": 1, "patch_size": 8, "stride": 8, "d_state": 3, "embed_dim": 20, "num_classes": 2},
    {"img_size": 8, "patch_size": 8, "stride": 8, "if_cls_token": False},  # one patch
]
HARMLESS = {
    "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "if_rope": False, "if_rope_residual": False,
    "if_bidirectional": False, "if_bimamba": False, "flip_img_sequences_ratio": -1.0, "init_layer_scale": None,
    "ssm_cfg": None, "if_random_cls_token_position": False, "if_random_token_rank": False,
}  # fmt: skip
REFUSED = [
    {"rms_norm": False},
    {"if_bidirectional": True},
    {"if_rope": True},
    {"if_rope_residual": True},
    {"if_bimamba": True},
    {"bimamba_type": "v1"},
    {"flip_img_sequences_ratio": 0.5},
    {"final_pool_type": "max"},
    {"init_layer_scale": 1e-4},
    {"ssm_cfg": {"use_fast_path": False}},
    {"if_random_token_rank": True},
]


def write(path, options: dict, args: object = None, **changes):
    """An official file; `args` are what it says of itself."""
    content = {
        "model": official_state(**options),
        "epoch": 7,
        "optimizer": {"state": {}},
        "scaler": "none",
        "args": args,
    }
    torch.save({key: value for key, value in (content | changes).items() if value is not None}, path)
    return path


def assert_equals_reference(model, options: dict) -> None:
    """In float64, so that what is left is the weights' float32."""
    image = torch.randn(2, model.config.in_chans, *model.config.image_shape, dtype=torch.float64)
    expected = official_forward(official_state(**options), image, **options)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(image), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", APPLIED, ids=str)
def test_options_in_args_are_applied(options, tmp_path):
    said = {**DEFAULTS, **HARMLESS, **options}
    said["input_size"], said["nb_classes"] = said.pop("img_size"), said.pop("num_classes")  # the command line's names
    path = write(tmp_path / "a.pth", options, Namespace(**said, lr=1e-3, drop_path=0.1, output_dir="out"))
    model = load_official(path)
    assert_equals_reference(model, options)
    assert model.config.norm_eps == {**DEFAULTS, **options}["norm_epsilon"]


@pytest.mark.parametrize("options", APPLIED[1:5] + APPLIED[-3:-2], ids=str)
def test_options_given_by_the_user_are_applied(options, tmp_path):
    path = write(tmp_path / "a.pth", options)
    given = {key: value for key, value in {**DEFAULTS, **options}.items() if key not in ("channels", "d_state")}
    assert_equals_reference(load_official(path, **given), options)


@pytest.mark.parametrize("options", APPLIED, ids=str)
def test_the_users_word_comes_before_the_files(options, tmp_path):
    wrong = {"norm_epsilon": 0.5, "if_divide_out": not {**DEFAULTS, **options}["if_divide_out"], "input_size": 64}
    path = write(tmp_path / "a.pth", options, Namespace(**wrong))
    given = {key: value for key, value in {**DEFAULTS, **options}.items() if key not in ("channels", "d_state")}
    assert_equals_reference(load_official(path, **given), options)


@pytest.mark.parametrize("kind", [Namespace, dict])
@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_ours_does_not_compute_is_refused_by_name(options, kind, tmp_path):
    state = {key: value for key, value in options.items() if key != "bimamba_type"}
    path = write(tmp_path / "a.pth", state, kind(**options))
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}"):
        load_official(path)
    if name not in ("init_layer_scale", "ssm_cfg"):
        with pytest.raises(ValueError, match=f"{name} is"):
            load_official(official_state(), **options)


def test_options_that_matter_only_without_a_class_token():
    bare = official_state(if_cls_token=False)
    for pool in ("none", "max"):
        with pytest.raises(ValueError, match=f"final_pool_type is '{pool}'"):
            load_official(bare, final_pool_type=pool)
    with pytest.raises(ValueError, match="if_random_cls_token_position is True"):
        load_official(official_state(), if_random_cls_token_position=True, use_middle_cls_token=False)
    model = load_official(official_state(), if_random_cls_token_position=True)  # the middle comes before it there
    assert_equals_reference(model, {})


@pytest.mark.parametrize(
    ("add", "remove", "option"),
    [
        ({"rope.freqs_cos": (4, 4)}, [], "if_rope=True"),
        ({"norm_f.bias": (16,)}, [], "rms_norm=False"),
        ({"layers.0.norm.bias": (16,)}, [], "rms_norm=False"),
        ({"layers.1.mixer.in_proj.bias": (64,)}, [], "'bias': True"),
        ({"layers.0.mixer.gamma": (16,)}, [], "init_layer_scale"),
        ({}, ["conv1d.bias", "conv1d_b.bias"], "'conv_bias': False"),
        ({}, [f"{name}_b.weight" for name in ("conv1d", "x_proj", "dt_proj")] + ["conv1d_b.bias", "D_b"], "'v1'"),
    ],
)  # fmt: skip
def test_options_that_only_the_names_of_the_weights_tell(add, remove, option):
    state = official_state() | {name: torch.randn(shape) for name, shape in add.items()}
    for layer in range(2):
        for name in remove:
            del state[f"layers.{layer}.mixer.{name}"]
    with pytest.raises(ValueError, match="its names tell .*which minivim's Vim does not have") as error:
        load_official(state)
    assert option in str(error.value) and len(str(error.value)) < 500


# ---------------------------------------------------------------- the model's name


@pytest.mark.parametrize("name", OFFICIAL)
def test_registered_names_say_all_but_the_epsilon(name):
    width, stride = OFFICIAL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options, official = name_options(name)
    assert official == name
    assert options == {
        "embed_dim": width, "depth": 24, "patch_size": 16, "img_size": 224, "stride": stride, "bimamba_type": "v2",
        "final_pool_type": "mean", "if_abs_pos_embed": True, "if_cls_token": True, "use_middle_cls_token": True,
        "if_divide_out": True,
    }  # fmt: skip


def test_a_whole_official_model_equals_the_reference():
    sizes = {"img_size": 64, "patch_size": 16, "stride": 16, "embed_dim": 192, "depth": 24, "d_state": 16}
    options = {**sizes, "num_classes": 1000}
    state = {name: value * 0.3 for name, value in official_state(**options).items()}
    args = Namespace(model=TINY, input_size=64, nb_classes=1000, drop=0.0, drop_path=0.1, eval_crop_ratio=0.875)
    model, image = load_official({"model": state, "args": args}), torch.randn(1, 3, 64, 64)
    assert model.config == VimConfig(img_size=64, dt_rank=12)
    with torch.no_grad():
        expected = official_forward(state, image, **options)
        torch.testing.assert_close(model(image).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (TINY.replace("tiny", "small"), "say embed_dim 384, its shapes 192"),
        (
            TINY.replace("_224", "_stride8_224"),
            "say img_size 224 and stride 8, which make 730 tokens; pos_embed has 197",
        ),
        (TINY.replace("bimambav2", "bimambav1"), "bimamba_type"),
        (TINY.replace("with_midclstok", "with_noclstok"), "say cls_token 'none', its shapes middle"),
        (TINY.replace("with_midclstok", "with_double_cls_token"), "say cls_token 'double', its shapes middle"),
        (TINY.replace("_div2", ""), r"does not say if_divide_out; it must be given: load_official\(path, if_divide"),
        (TINY.replace("midclstok", "cls_token"), "does not say use_middle_cls_token; it must be given"),
        (TINY.replace("_with_midclstok", ""), "does not say use_middle_cls_token; it must be given"),
        (
            "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_rope_also_residual_with_cls_token",
            "if_rope is",
        ),
        (["vim"], r"args.model is \['vim'\]; it must be the name of a model"),
    ],
)
def test_names_that_contradict_the_weights_or_leave_something_open(name, message):
    sizes = {"img_size": 224, "patch_size": 16, "stride": 16, "embed_dim": 192, "depth": 24, "d_state": 1}
    content = {"model": official_state(**sizes, num_classes=1), "args": Namespace(model=name)}
    with pytest.raises(ValueError, match=message):
        load_official(content)


def test_what_a_name_leaves_open_can_be_given():
    name = TINY.replace("_div2", "").replace("midclstok", "cls_token")
    sizes = {
        "img_size": 32,
        "patch_size": 16,
        "stride": 16,
        "embed_dim": 192,
        "depth": 24,
        "d_state": 1,
        "num_classes": 1,
    }
    options = {"if_divide_out": False, "use_middle_cls_token": False}
    content = {"model": official_state(**sizes), "args": Namespace(model=name, input_size=32)}
    model = load_official(content, **options)
    with torch.no_grad():
        image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
        expected = official_forward(official_state(**sizes), image, **sizes, **options)
        torch.testing.assert_close(model.double()(image), expected, rtol=1e-8, atol=1e-8)


def test_a_name_of_ones_own_is_noted_and_an_option_in_it_still_counts(tmp_path):
    path = write(tmp_path / "a.pth", {}, Namespace(model="my_vim"))
    with pytest.warns(UserWarning, match="args.model is 'my_vim', which is no official name"):
        assert_equals_reference(load_official(path), {})
    path = write(tmp_path / "a.pth", {}, Namespace(model="my_vim_rope"))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="if_rope is True"):
        load_official(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"embed_dim": 32}, "say embed_dim 32, its shapes 16"),
        ({"depth": 3}, "say depth 3, its shapes 2"),
        ({"patch_size": 8}, "say patch_size 8, its shapes 4"),
        ({"nb_classes": 1000}, "say num_classes 1000, its shapes 5"),
        ({"channels": 1}, "say in_chans 1, its shapes 3"),
        ({"d_state": 16}, "say state_dim 16, its shapes 4"),
        ({"bimamba_type": "none"}, "say directions 1, its shapes 2"),
        ({"if_abs_pos_embed": False}, "say pos_embed False, its shapes True"),
        ({"if_cls_token": False}, "say cls_token 'none', its shapes middle"),
        ({"input_size": 32, "stride": 4}, "say img_size 32 and stride 4, which make 65 tokens; pos_embed has 17"),
        ({"input_size": 10**18}, "contradicts itself|pos_embed|of at most"),
        ({"input_size": "224"}, "args.input_size is '224'; it must be a whole number"),
        ({"stride": 0}, "args.stride is 0; it must be a whole number"),
        ({"embed_dim": True}, "args.embed_dim is True; it must be a whole number"),
        ({"if_divide_out": "yes"}, "args.if_divide_out is 'yes'; it must be True or False"),
        ({"final_pool_type": ["mean"]}, r"args.final_pool_type is \['mean'\]; it must be one of"),
        ({"norm_epsilon": float("nan")}, "args.norm_epsilon is nan; it must be a number"),
        ({"norm_epsilon": -1.0}, "norm_eps is -1.0; it must be a number above 0"),
        ({"eval_crop_ratio": 0}, "crop_pct is 0"),
        ({"std": [0.0, 1.0, 1.0], "model": None}, r"std is \(0.0, 1.0, 1.0\); its numbers must be above 0"),
        ({"if_rope": torch.ones(2)}, "args.if_rope is tensor.*; it must be True or False"),
        ({"ssm_cfg": torch.ones(2)}, "ssm_cfg is tensor"),
    ],
)
def test_args_that_contradict_the_shapes_or_are_no_values(args, message, tmp_path, unchecked):
    options = {"img_size": 40, "patch_size": 4, "stride": 12} if "eval_crop_ratio" in args else {}
    path = write(tmp_path / "a.pth", options, Namespace(**args))
    overrides = {"img_size": 40, "stride": 12} if options else {}
    with pytest.raises(ValueError, match=message) as error:
        load_official(path, **overrides)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("args", [None, 3, "text", [1], {}, {3: 4, "model": None}])
def test_args_that_say_nothing_are_nothing(args, tmp_path):
    assert_equals_reference(load_official(write(tmp_path / "a.pth", {}, args)), {})


def test_without_position_embedding_the_size_must_be_told():
    bare = official_state(if_abs_pos_embed=False)
    with pytest.raises(ValueError, match="lacks pos_embed, so that nothing tells img_size and stride"):
        load_official(bare)
    with pytest.raises(ValueError, match="lacks pos_embed"):
        load_official(bare, img_size=16)


# ---------------------------------------------------------------- into a model that is there already


def test_a_model_must_be_what_the_file_says(tmp_path):
    sizes = {"depth": 2, "embed_dim": 16, "img_size": 16, "patch_size": 4, "state_dim": 4, "num_classes": 5}

    def create(options, **fields):
        path = write(tmp_path / "a.pth", options, Namespace(**options))
        return create_model("vim_nano_patch2_8", checkpoint=path, **sizes, **fields)

    for options, fields in (
        ({"use_middle_cls_token": False}, {"cls_token": "head"}),
        ({"norm_epsilon": 1e-2}, {"norm_eps": 1e-2}),
        ({"if_divide_out": False}, {}),
    ):
        assert_equals_reference(create(options, **fields), options)
        for name, value in fields.items():
            with pytest.raises(ValueError, match=f"has weights for {name} {value!r}, but the model's is"):
                create(options)
    with pytest.raises(ValueError, match="if_bidirectional is True"):
        create({"if_bidirectional": True})
