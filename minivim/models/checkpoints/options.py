"""The options of the official code (hustvl/Vim dd0358a, vim/models_mamba.py, class VisionMamba).

Where a file says them, what each means for ours, and which of them we do not have.

A training script stores its command line as `args`: the name of a registered model, in which most options are spelled
(vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2), and input_size.
"""

import re
from argparse import Namespace
from collections.abc import Collection, Mapping

from minivim.checks import check_choice, check_whole, is_number, notify, shown
from minivim.preparation import Preparation

# Official option: our field, for those that differ in name alone, or not at all.
SIZES = {
    "img_size": "img_size", "patch_size": "patch_size", "stride": "stride", "channels": "in_chans",
    "num_classes": "num_classes", "embed_dim": "embed_dim", "depth": "depth", "d_state": "state_dim",
}  # fmt: skip
SWITCHES = (
    "rms_norm", "if_bidirectional", "if_abs_pos_embed", "if_rope", "if_rope_residual", "if_bimamba", "if_cls_token",
    "if_divide_out", "use_double_cls_token", "use_middle_cls_token", "if_random_cls_token_position",
    "if_random_token_rank",
)  # fmt: skip
CHOICES = {"final_pool_type": ("none", "mean", "max", "all"), "bimamba_type": ("none", "v1", "v2")}
NUMBERS = ("norm_epsilon", "flip_img_sequences_ratio")
UNCHECKED = ("init_layer_scale", "ssm_cfg")
OPTIONS = (*SIZES, *SWITCHES, *CHOICES, *NUMBERS, *UNCHECKED)
# The command line's names, and how the option was spelled before 2024.
ALIASES = {"input_size": "img_size", "nb_classes": "num_classes", "if_devide_out": "if_divide_out"}

NAME = re.compile(r"vim_(tiny|small|base)_patch(\d{1,4})(?:_stride(\d{1,4}))?_(\d{1,5})((?:_\w+)?)")
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
# Words of the names, longer ones first, and the options that they set.
WORDS: dict[str, dict] = {
    r"bimambav1": {"bimamba_type": "v1"},
    r"bimambav2": {"bimamba_type": "v2"},
    r"final_pool_none": {"final_pool_type": "none"},
    r"final_pool_mean": {"final_pool_type": "mean"},
    r"final_pool_max": {"final_pool_type": "max"},
    r"final_pool_all": {"final_pool_type": "all"},
    r"abs_pos_embed": {"if_abs_pos_embed": True},
    r"rope_also_residual": {"if_rope": True, "if_rope_residual": True},
    r"rope": {"if_rope": True},
    r"bidirectional": {"if_bidirectional": True},
    r"(with_)?(no_?clstok|no_?cls_token)": {"if_cls_token": False},
    r"(with_)?(double_?clstok|double_cls_token)": {"if_cls_token": True, "use_double_cls_token": True},
    r"(with_)?(mid_?clstok|middle_cls_token)": {"if_cls_token": True, "use_middle_cls_token": True},
    r"(with_)?(head_?clstok|head_cls_token)": {"if_cls_token": True, "use_middle_cls_token": False},
    r"(with_)?(clstok|cls_token)": {"if_cls_token": True},
    r"div2": {"if_divide_out": True},
}

# What changes the output and is not ours: the values that leave it as it is.
WITHOUT_EFFECT: dict[str, tuple] = {
    "rms_norm": (True,),
    "if_bidirectional": (False,),
    "if_rope": (False,),
    "if_rope_residual": (False,),
    "if_bimamba": (False,),
    "if_random_token_rank": (False,),
    "bimamba_type": ("v2", "none"),
    "final_pool_type": ("mean", "all", "none"),
    "init_layer_scale": (None,),
    "ssm_cfg": (None, {}),
}


def values_of(args: object) -> Mapping:
    """A file's `args`, a namespace or a dict, as a dict; {} for anything else."""
    values = vars(args) if isinstance(args, Namespace) else args
    return values if isinstance(values, Mapping) else {}


def read_args(args: object) -> tuple[dict, str | None]:
    """(the options that a file's `args` state, the model's name if it is spelled like an official one).

    What stands in `args` by itself comes before what the name spells. Raises ValueError for values of another kind.
    """
    stated: dict = {}
    values, name = values_of(args), None
    if values.get("model") is not None:
        stated, name = name_options(values["model"])
    for key, value in values.items():
        option = ALIASES.get(key, key) if isinstance(key, str) else None
        if option in OPTIONS and value is not None:
            check_option(f"args.{key}", option, value)
            stated[option] = value
    return stated, name


def name_options(name: object) -> tuple[dict, str | None]:
    """(the options that a registered model's name spells, the name if it is spelled like an official one).

    The official constructor's stride is 16 where the name has none.
    """
    if not isinstance(name, str):
        raise ValueError(f"args.model is {shown(name)}; it must be the name of a model")
    stated: dict = {}
    match = NAME.fullmatch(name)
    if match:
        size, patch, stride, image, _ = match.groups()
        stated = {"embed_dim": WIDTHS[size], "depth": 24, "patch_size": int(patch), "img_size": int(image)}
        stated["stride"] = int(stride or 16)
    rest = match[5] if match else name
    for word, options in WORDS.items():
        rest, count = re.subn(rf"(?<![a-z0-9]){word}(?![a-z0-9])", "", rest)
        stated |= options if count else {}
    if match and not rest.strip("_"):
        return stated, name
    notify(f"args.model is {shown(name)}, which is no official name; what it leaves open is taken to be as in those")
    return stated, None


def check_option(name: str, option: str, value: object) -> None:
    """Raise a ValueError that names an option whose value is of a kind that the official code never gives it."""
    if option in SIZES:
        check_whole(name, value, minimum=int(option != "num_classes"))
    elif option in SWITCHES and not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False")
    elif option in CHOICES:
        check_choice(name, value, CHOICES[option])
    elif option in NUMBERS and not is_number(value):
        raise ValueError(f"{name} is {shown(value)}; it must be a number")


def refuse_foreign(options: Mapping) -> None:
    """Raise a ValueError that names the first option with which the official model computes what ours does not.

    `if_cls_token` must be among the options, as the file's names tell it.
    """
    refused = [name for name, same in WITHOUT_EFFECT.items() if name in options and options[name] not in same]
    if options.get("flip_img_sequences_ratio", 0) > 0:
        refused.append("flip_img_sequences_ratio")
    if not options["if_cls_token"] and options.get("final_pool_type") == "none":  # the last token
        refused.append("final_pool_type")
    if options.get("if_random_cls_token_position") and options.get("use_middle_cls_token") is False:
        refused.append("if_random_cls_token_position")
    for name in refused:
        raise ValueError(f"{name} is {shown(options[name])}; minivim's Vim does not compute what it does there")


def fields_of(options: Mapping) -> dict:
    """The fields of VimConfig that options state."""
    fields = {SIZES[option]: value for option, value in options.items() if option in SIZES}
    if "norm_epsilon" in options:
        fields["norm_eps"] = options["norm_epsilon"]
    if "if_abs_pos_embed" in options:
        fields["pos_embed"] = options["if_abs_pos_embed"]
    if "bimamba_type" in options:
        fields["directions"] = 2 if options["bimamba_type"] == "v2" else 1
    if options.get("if_cls_token") is False:
        fields["cls_token"] = "none"
        if options.get("final_pool_type") == "all":
            fields["global_pool"] = ""
    elif options.get("use_double_cls_token"):
        fields["cls_token"] = "double"
    elif "use_middle_cls_token" in options:
        fields["cls_token"] = "middle" if options["use_middle_cls_token"] else "head"
    return fields


def telling_names(state: Collection[str]) -> list[str]:
    """What the names of a state dict tell about options that ours does not have."""
    tell = {
        r"rope\.": "if_rope=True",
        r"(.*\.)?norm(_f)?\.bias": "rms_norm=False",
        r".*\.(in|out)_proj\.bias": "ssm_cfg={'bias': True}",
        r".*\.gamma": "init_layer_scale",
    }
    found = [option for pattern, option in tell.items() if any(re.match(pattern, name) for name in state)]
    layer = "layers.0.mixer."
    if f"{layer}A_b_log" in state and not any(name.startswith(f"{layer}conv1d_b.") for name in state):
        found.append("bimamba_type='v1'")
    if f"{layer}conv1d.weight" in state and f"{layer}conv1d.bias" not in state:
        found.append("ssm_cfg={'conv_bias': False}")
    return [f"its names tell {', '.join(found)}, which minivim's Vim does not have"] if found else []


def check_complete(name: str | None, stated: Collection[str], wanted: Collection[str]) -> None:
    """Raise a ValueError where an official name leaves one of `wanted` open: the code's default has changed."""
    for option in wanted:
        if name is not None and option not in stated:
            raise ValueError(
                f"args.model is {shown(name)}, which does not say {option}; it must be given: "
                f"load_official(path, {option}=...)"
            )


def preparation_of(args: object, side: int) -> Preparation:
    """How the official evaluation prepares an image of `side` pixels; `args` may give eval_crop_ratio, mean and std.

    ImageNet's mean and deviation. The picture is resized to side / 0.875 and cut, up to 32 pixels it is left whole.
    """
    values = values_of(args)
    crop = values.get("eval_crop_ratio")
    known: dict = {"crop_pct": (0.875 if crop is None else crop) if side > 32 else 1.0}
    known |= {name: values[name] for name in ("mean", "std") if isinstance(values.get(name), list | tuple)}
    return Preparation(**known)
