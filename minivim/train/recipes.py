"""What can be set about a training run, and the presets: values that are known to work together."""

import json
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from minivim.checks import LARGEST, LARGEST_SIDE, MOST_THREADS, MOST_WORKERS, is_number, shown
from minivim.models.registry import MODELS
from minivim.train.pretrained import SHAPE, check_shape, read_pretrained, weights_file

CONFIG_FILE, STATE_FILE = "config.json", "state.pt"


@dataclass(frozen=True)
class TrainConfig:
    """A training run. A field left at None is filled in by `resolve`: from the resumed run, else from the preset."""

    data: str | None = None
    """digits, shapes, cifar10, cifar100, imagenet, OWNER/NAME[:CONFIG] on the hub, or a folder."""
    val_share: float | None = None
    """Share of the training images of each class that becomes the validation part, 0 to 0.9, unless the set has one."""
    train_share: float | None = None
    """Share of the training images of each class that is used at all, validation included: as if there were no more."""
    classes: int | str | None = None
    """Only some classes: the first N, or those in a text file, one a line, in its order."""
    in_memory: bool | None = None
    """Decode all images once, into memory, not each time anew in workers; None: if they take 4 GiB at most."""
    image_column: str | None = None
    """The column of a table that holds the images; None: the only one."""
    label_column: str | None = None
    """The column of a table that holds the labels, as coarse_label of cifar100; None: the only one."""
    preset: str | None = None
    """Defaults for all other fields: base, digits, shapes, cifar10, cifar100, cifar10_cpu, cifar10_cpu_long,
    imagenet, imagenet_finetune; None: by the data's name."""
    model: str | None = None
    """A name from `minivim models`, Vim or DeiT."""
    out: str | None = None
    """Folder for the run's files; None: runs/DATA-MODEL-TIME."""
    resume: bool | None = None
    """Continue the run in `out` if there is one; all fields not given are taken from it."""
    seed: int | None = None
    """Seed of the weights, of the order of the images and of the augmentation."""

    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int | None = None
    """Images in one step, all processes together."""
    accumulate: int | None = None
    """Parts in which a process computes its images, one after the other, where they do not fit into memory together."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    lr_end: float | None = None
    """Learning rate at the end of the cosine, as a share of the peak."""
    layer_decay: float | None = None
    """The learning rate of each layer as a multiple of the next one's, the head's being lr; 1: the same for all."""
    warmup: float | None = None
    """Share of all steps in which the learning rate rises linearly to its peak."""
    weight_decay: float | None = None
    """AdamW's decay of the weight matrices; biases, norms, A, D and embeddings have none."""
    beta2: float | None = None
    """AdamW's second momentum."""
    grad_clip: float | None = None
    """Largest norm of the gradient; 0: no clipping."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is what is evaluated and saved; 0: none."""
    bf16: bool | None = None
    """Compute matrix products in bfloat16 (autocast); weights and the scan's state stay float32."""

    crop: int | None = None
    """Move the image by up to this many pixels (random crop with padding)."""
    flip: float | None = None
    """Probability of a mirror image; 0 for digits and letters."""
    rotate: float | None = None
    """Turn the image by up to this many degrees."""
    zoom: float | None = None
    """Size the image by 1 +- this."""
    shift: float | None = None
    """Move the image by up to this many pixels, fractions included."""
    jitter: float | None = None
    """Change brightness, contrast and saturation by up to this share."""
    erase: float | None = None
    """Probability of a box being erased."""
    smoothing: float | None = None
    """Label smoothing: the share of the target spread over all classes."""
    mixup: float | None = None
    """Mixup's alpha; 0: none."""
    cutmix: float | None = None
    """Cutmix's alpha; 0: none."""
    crop_scale: float | None = None
    """Smallest area of a random resized crop; only for sets that are not in memory."""
    eval_crop: float | None = None
    """Share of the side that an image's centre keeps in evaluation, and wherever else no crop is drawn; 1: all."""

    img_size: int | None = None
    """Side of the images in pixels; None: their own."""
    patch_size: int | None = None
    """Side of a patch in pixels; None: the model's own."""
    stride: int | None = None
    """Pixels from one patch to the next, where patches overlap below their side; None: the model's own."""
    embed_dim: int | None = None
    """Model width D; None: the model's own."""
    depth: int | None = None
    """Number of blocks; None: the model's own."""
    expand: int | None = None
    """A Vim's inner width E as a multiple of D; None: the model's own."""
    state_dim: int | None = None
    """A Vim's state size N; None: the model's own."""
    cls_token: str | None = None
    """Where the class token stands: middle, head, double; none, max: mean, maximum of all tokens; None: the model's."""
    pos_embed: bool | None = None
    """Whether tokens get a learned position embedding; None: the model's own."""
    directions: int | None = None
    """A Vim's scans: 2, or 1, forward only; None: the model's own."""
    scan_order: str | None = None
    """The order in which a Vim reads the patches: rows, columns, snake; None: the model's own."""
    init: str | None = None
    """A file of weights to start from, ours or an official Vim's, whose shape the model then has, and, unless given,
    whose image size and stride. Without a file a Vim's first step sizes: paper, both ways, or official, forward only;
    None: the model's own."""
    freeze: bool | None = None
    """Train the head alone, on the features of the weights that `init` gives."""
    drop_path: float | None = None
    """Stochastic depth rate of the last block."""

    backend: str | None = None
    """Backend of the scan: auto, reference, chunked, numba, triton."""
    compile: bool | None = None
    """Train with torch.compile: a slow first step, then other draws of drop path; what is evaluated is not compiled."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None: cuda if there is one."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""
    workers: int | None = None
    """Processes that decode images, for each process that trains; only for sets that are not in memory."""
    eval_every: int | None = None
    """Evaluate after every this many epochs, and after the last one."""
    save_seconds: float | None = None
    """Seconds between two saves of the state from which a killed run resumes; 0: after every step."""
    tensorboard: bool | None = None
    """Write TensorBoard events too."""
    progress: bool | None = None
    """Show a progress bar and print what is used and reached."""


BASE = TrainConfig(
    data="digits", val_share=0.1, train_share=1.0, model="vim_tiny_patch16_224", resume=False, seed=0,
    epochs=30, batch_size=64, lr=1e-3, lr_end=0.01, layer_decay=1.0, warmup=0.1, weight_decay=0.05, beta2=0.999,
    grad_clip=1.0, ema=0.999, bf16=False, crop=0, flip=0.5, rotate=0.0, zoom=0.0, shift=0.0, jitter=0.0, erase=0.0,
    smoothing=0.1, mixup=0.0, cutmix=0.0, crop_scale=0.08, eval_crop=1.0, drop_path=0.0, backend="auto", compile=False,
    workers=2, eval_every=1, save_seconds=30.0, tensorboard=False, progress=True, accumulate=1, freeze=False,
)  # fmt: skip

CIFAR = TrainConfig(
    model="vim_tiny_patch4_32", epochs=100, batch_size=256, lr=2e-3, warmup=0.05, crop=4, erase=0.25, jitter=0.2,
    drop_path=0.1, mixup=0.8, cutmix=1.0, ema=0.999, bf16=True,
)  # fmt: skip

PRESETS = {
    "base": TrainConfig(),
    "digits": TrainConfig(
        model="vim_nano_patch2_8", epochs=20, lr=3e-3, ema=0.99, flip=0.0, rotate=10.0, zoom=0.1, shift=0.7,
    ),
    "shapes": TrainConfig(
        model="vim_tiny_patch4_32", embed_dim=64, depth=2, epochs=10, lr=3e-3, ema=0.98, crop=2,
    ),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "cifar10_cpu": TrainConfig(
        model="vim_tiny_patch4_32", img_size=32, embed_dim=96, depth=4, expand=1, state_dim=4, epochs=5, lr=5e-3,
        val_share=0.02, beta2=0.98, crop=2, ema=0.998, smoothing=0.0,
    ),
    "cifar10_cpu_long": TrainConfig(
        model="vim_tiny_patch4_32", img_size=32, embed_dim=144, depth=5, expand=1, state_dim=4, cls_token="none",
        epochs=20, lr=3e-3, warmup=0.05, val_share=0.02, beta2=0.98, crop=4, ema=0.998,
    ),
    "imagenet": TrainConfig(
        model="vim_tiny_patch16_224", img_size=224, epochs=300, batch_size=1024, warmup=1 / 60, ema=0.99996,
        weight_decay=0.1, jitter=0.3, erase=0.25, mixup=0.8, cutmix=1.0, eval_crop=0.875, bf16=True, workers=8,
        val_share=0.01, save_seconds=300.0, in_memory=False,
    ),
}  # fmt: skip
# At a finer stride, as the paper's section 4.1 (long sequence setting): a constant, small rate.
PRESETS["imagenet_finetune"] = replace(
    PRESETS["imagenet"], epochs=30, lr=1e-5, lr_end=1.0, warmup=0.0, weight_decay=1e-8
)

# Fields that a resumed run may change: how it computes, not what; of the data where they are, as the state knows them.
FREE_ON_RESUME = (
    "resume", "out", "data", "compile", "device", "threads", "workers", "eval_every", "save_seconds", "tensorboard",
    "progress",
)  # fmt: skip


def given(config: TrainConfig) -> dict:
    """The fields that are set."""
    return {name: value for name, value in vars(config).items() if value is not None}


def resolve(config: TrainConfig) -> TrainConfig:
    """Every None replaced: by the resumed run's value, else the preset's, else the base's; all values checked.

    Idempotent. Raises ValueError for an impossible value, and for one that differs from that of the run to be resumed,
    or from the file's that `init` names.
    """
    check_words(config)
    saved = saved_config(config.out) if config.resume else TrainConfig()
    data = os.fspath(config.data or saved.data or BASE.data)
    preset = config.preset or saved.preset or (data if data in PRESETS else "base")
    if preset not in PRESETS:
        raise ValueError(f"preset is {shown(preset)}; it must be one of {', '.join(PRESETS)}")
    resolved = TrainConfig(**merged({**given(config), "data": data, "preset": preset}, given(saved)))
    check(resolved)
    check_frozen(resolved)
    if resolved.out is None:
        label = Path(data).name.replace(":", "-")
        resolved = replace(resolved, out=f"runs/{label}-{resolved.model}-{time.strftime('%Y%m%d-%H%M%S')}")
    return resolved


def merged(wanted: dict, saved: dict) -> dict:
    """What is wanted, over the resumed run's fields, over what a file of weights says, over the preset and the base."""
    preset, file = given(PRESETS[wanted["preset"]]), weights_file(wanted.get("init", saved.get("init")))
    if wanted.get("resume") and (Path(wanted["out"]) / STATE_FILE).exists():  # else the run begins, as it is told to
        check_same(wanted, saved)
        preset = {}  # the run has all of it; a field that is younger than the run is as the base has it
    elif file:
        pretrained = read_pretrained(file)
        check_shape(wanted, pretrained)
        preset = {name: value for name, value in preset.items() if name not in SHAPE} | pretrained.grid
        saved = saved | pretrained.shape | {"init": file}
    merged = {**given(BASE), **preset, **saved, **wanted}
    if merged["freeze"]:  # a block that does not learn is not regularised
        merged["drop_path"] = wanted.get("drop_path", 0.0)
    foreign = preset.keys() & set(SHAPE) - wanted.keys() - saved.keys() - fields_of(merged["model"])
    return {name: value for name, value in merged.items() if name not in foreign}


def fields_of(model: str) -> set[str]:
    """What can be set about a model's shape, its name included; of an unknown one, whatever there is."""
    if model not in MODELS:
        return set(SHAPE)
    _, config_class, _ = MODELS[model]
    return {"model"} | {field.name for field in fields(config_class)}


def check_frozen(config: TrainConfig) -> None:
    """Raise ValueError for what means nothing where the head alone learns."""
    if not config.freeze:
        return
    if weights_file(config.init) is None:
        raise ValueError("freeze is True; it must be False without a file in init: the features would be random")
    for name, off in (("layer_decay", 1), ("drop_path", 0)):
        if getattr(config, name) != off:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be {off} with freeze: only the head learns")


def check_same(wanted: dict, saved: dict) -> None:
    """Raise ValueError where a resumed run is wanted to be another one; neither has to name all fields."""
    for name, value in saved.items():
        if name not in FREE_ON_RESUME and wanted.get(name, value) != value:
            why = ", because the learning rate falls towards the last of them" if name == "epochs" else ""
            raise ValueError(
                f"{name} is {shown(wanted[name])}; it must be {value!r}, as in the run that is resumed{why}"
            )


def saved_config(out: str | os.PathLike | None) -> TrainConfig:
    """The configuration of the run in the folder `out`; one with nothing set if there is no run."""
    if out is None:
        raise ValueError("out is None although resume is set; it must be the folder of the run to resume")
    path = Path(out) / CONFIG_FILE
    if not path.is_file():
        return TrainConfig()
    try:
        saved = TrainConfig(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"out is {str(out)!r}, whose {CONFIG_FILE} cannot be read ({error})") from error
    if None in (saved.data, saved.preset, saved.model, saved.out):
        raise ValueError(
            f"out is {str(out)!r}, whose {CONFIG_FILE} is not of a run of minivim; it must be a new folder"
        )
    return saved


# field -> (smallest, largest) allowed value; None: LARGEST for a count, whatever is finite for another number
RANGES = {
    "val_share": (0, 0.9), "train_share": (0.0001, 1), "epochs": (1, None), "batch_size": (1, None), "lr": (0, None),
    "lr_end": (0, 1), "layer_decay": (0.001, 1), "warmup": (0, 1),
    "weight_decay": (0, None), "beta2": (0, 0.9999999), "grad_clip": (0, None), "ema": (0, 0.9999999),
    "crop": (0, 256), "flip": (0, 1), "rotate": (0, 180), "zoom": (0, 0.9), "shift": (0, LARGEST_SIDE),
    "jitter": (0, 1), "erase": (0, 1), "smoothing": (0, 1), "mixup": (0, 1000), "cutmix": (0, 1000),
    "crop_scale": (0.001, 1), "eval_crop": (0.1, 1), "img_size": (1, LARGEST_SIDE),
    "patch_size": (1, LARGEST_SIDE), "stride": (1, LARGEST_SIDE), "embed_dim": (1, 65536), "depth": (1, 1024),
    "expand": (1, 64), "state_dim": (1, 4096),
    "drop_path": (0, 0.99), "threads": (1, MOST_THREADS), "workers": (0, MOST_WORKERS), "eval_every": (1, None),
    "save_seconds": (0, None), "seed": (0, 2**63 - 1), "accumulate": (1, None),
}  # fmt: skip


def check(config: TrainConfig) -> None:
    """Raise ValueError or TypeError, naming the field, for a value that is out of its range."""
    if config.model not in MODELS:
        raise ValueError(f"model is {shown(config.model)}; it must be one of those that `minivim models` lists")
    whole = {field.name for field in fields(config) if field.type in (int, int | None)}
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {shown(value)}; it must be a number")
        if name in whole and not isinstance(value, int):
            raise TypeError(f"{name} is {shown(value)}; it must be a whole number")
        if not low <= value:
            bound = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"{name} is {shown(value)}; it must be {bound}")
        high = LARGEST if high is None and name in whole else high
        if not is_number(value) or (high is not None and value > high):
            bound = "finite" if high is None else f"from {low} to {high}"
            raise ValueError(f"{name} is {shown(value)}; it must be {bound}")


def check_words(config: TrainConfig) -> None:
    """Raise ValueError or TypeError, naming the field, for an empty string and a switch that is neither on nor off."""
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None and str(value) == "":
            raise ValueError(f"{field.name} is ''; it must not be empty")
        if field.type == (bool | None) and not isinstance(value, bool | None):
            raise TypeError(f"{field.name} is {shown(value)}; it must be True or False")
