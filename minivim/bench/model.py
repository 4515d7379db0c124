"""`minivim bench model`: whole models side by side, Vim on each scan backend, DeiT with fused and naive attention."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minivim.bench import measure
from minivim.bench.report import Report, Row, summarise
from minivim.bench.scan import check_run, collect, peak, sampler
from minivim.checks import LARGEST_SIDE, check_choice, check_whole
from minivim.models.backbone import Backbone
from minivim.models.registry import MODELS, create_model
from minivim.models.vim import VisionMamba
from minivim.ops import available_backends
from minivim.processes import lacks_memory, use_threads

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}  # of the largest value, after up to 24 blocks, against float32
LARGEST_BATCH = 65536
# fused: what PyTorch chooses; naive: the whole matrix in memory, which the paper compared with
ATTENTION = {"fused": None, "naive": None, "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class ModelBench:
    """Time whole models side by side: Vim on each scan backend, DeiT with fused and naive attention."""

    model: tuple[str, ...] = ()
    """A model's name; may be given several times (default: vim_tiny_patch16_224 and deit_tiny_patch16_224)."""
    img_size: tuple[int, ...] = ()
    """The image's side in pixels; may be given several times (default: the first model's own)."""
    batch: int = 1
    """Images in a batch."""
    train: bool = False
    """Time a training step (forward, cross-entropy, backward, AdamW) instead of inference."""
    backend: tuple[str, ...] = ()
    """A scan backend; may be given several times (default: all that can run but the reference)."""
    attention: tuple[str, ...] = ()
    """fused, naive, or one fused kernel by name: flash, cudnn; may be given several times (default: fused, naive)."""
    memory: bool = True
    """Also measure the peak memory beyond weights and images."""
    rounds: int = 9
    """Interleaved rounds on a quiet machine."""
    threads: int | None = None
    """CPU threads (default: torch's own choice)."""
    dtype: str = "float32"
    """float32, or bfloat16: mixed precision (autocast), with parameters and residual stream in float32."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path = Path("bench_model")
    """OUT.json and OUT.png are written."""

    def check(self) -> None:
        """Raise ValueError, naming the field, for a value that cannot be."""
        check_run(self.device, self.threads, self.rounds, self.out)
        check_whole("batch", self.batch, maximum=LARGEST_BATCH)
        check_choice("dtype", self.dtype, tuple(TOLERANCES))
        for name in self.model:
            check_choice("model", name, tuple(MODELS))
        for name in self.backend:
            check_choice("backend", name, available_backends(self.device))
        for name in self.attention:
            check_choice("attention", name, tuple(ATTENTION))
            check_kernel(name, self.device, self.dtype)
        for img_size in self.img_size:
            check_whole("img_size", img_size, maximum=LARGEST_SIDE)
        for case in chain(*self.cases()):
            case.check_size()

    def cases(self) -> list[list["ModelCase"]]:
        """One contest an image size: its contestants."""
        names = self.model or ("vim_tiny_patch16_224", "deit_tiny_patch16_224")
        sizes = self.img_size or (MODELS[names[0]][1](**MODELS[names[0]][2]).img_size,)
        backends = self.backend or [name for name in available_backends(self.device) if name != "reference"]
        attention = self.attention or ("fused", "naive")
        variants = {name: backends or ["reference"] if MODELS[name][0] is VisionMamba else attention for name in names}
        common = self.batch, self.train, self.device, self.dtype
        return [
            [ModelCase(name, variant, size, *common) for name in names for variant in variants[name]] for size in sizes
        ]


def check_kernel(attention: str, device: str, dtype: str) -> None:
    """Raise ValueError for a kernel of attention that does not exist for this device and dtype."""
    on_gpu = torch.device(device).type == "cuda"
    if attention == "cudnn" and not on_gpu:
        raise ValueError(f"attention is 'cudnn'; it must be another one on {device}: cuDNN is for GPUs")
    if ATTENTION[attention] is not None and on_gpu and dtype != "bfloat16":
        raise ValueError(f"dtype is {dtype!r}; it must be 'bfloat16' for the kernel {attention!r} of a GPU")


@dataclass(frozen=True)
class ModelCase:
    """One contestant: a model by name in one variant, a scan backend or a kind of attention."""

    name: str
    variant: str
    img_size: int
    batch: int
    train: bool
    device: str
    dtype: str = "float32"

    @property
    def is_vim(self) -> bool:
        """Whether the model is a Vim, whose scan has backends, rather than a DeiT."""
        return MODELS[self.name][0] is VisionMamba

    def check_size(self) -> None:
        """Raise ValueError if the model's patches do not tile the image."""
        _, config_class, defaults = MODELS[self.name]
        config_class(**{**defaults, "img_size": self.img_size})

    def reference(self) -> "ModelCase":
        """The same model computed in the plainest way, in float32, on at most two images."""
        plainest = "reference" if self.is_vim else "naive"
        return replace(self, variant=plainest, batch=min(self.batch, 2), dtype="float32")

    def build(self) -> Backbone:
        """The model with the random weights of seed 0."""
        overrides: dict[str, Any] = {} if self.is_vim else {"fused_attention": self.variant != "naive"}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = create_model(self.name, img_size=self.img_size, **overrides).to(self.device).train(self.train)
        return model.set_backend(self.variant) if isinstance(model, VisionMamba) else model

    @contextmanager
    def context(self) -> Iterator[None]:
        """What the forward pass runs under: mixed precision, and the one kernel of attention that was named."""
        kernel = ATTENTION.get(self.variant)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            with nullcontext() if kernel is None else sdpa_kernel(kernel):
                yield

    def images(self) -> Tensor:
        """Random images, (batch, 3, img_size, img_size); seed 0."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.img_size, self.img_size, generator=generator).to(self.device)

    def labels(self, model: Backbone) -> Tensor:
        """A label for each image."""
        return torch.arange(self.batch, device=self.device) % model.num_classes

    def __str__(self) -> str:
        return f"{self.name}, {self.variant} {'scan' if self.is_vim else 'attention'}"


def model_outputs(case: ModelCase) -> dict[str, Tensor]:
    """The logits, and in training also the gradients of all parameters."""
    model, images = case.build(), case.images()
    if not case.train:
        with torch.no_grad(), case.context():
            return {"logits": model(images).float()}
    with case.context():
        logits = model(images)
        loss = F.cross_entropy(logits, case.labels(model))
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach()} | gradients


def model_error(case: ModelCase) -> float:
    """The largest difference from the reference over the largest value; raises ValueError above TOLERANCES."""
    expected, found = model_outputs(case.reference()), model_outputs(replace(case, batch=min(case.batch, 2)))
    errors = {key: ((found[key] - x).abs().max() / x.abs().max()).item() for key, x in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    if not all(error <= TOLERANCES[case.dtype] for error in errors.values()):
        raise ValueError(
            f"{case} differs from {case.reference()}: its {worst} is off by {errors[worst]:.1e} of the largest value "
            f"but must be within {TOLERANCES[case.dtype]:.0e}"
        )
    return errors[worst]


def model_call(case: ModelCase) -> Callable[[], object]:
    """A call without arguments: inference on a batch, or a whole training step."""
    model, images = case.build(), case.images()

    def infer() -> Tensor:
        with torch.no_grad(), case.context():
            return model(images)

    if not case.train:
        return infer
    optimizer, labels = torch.optim.AdamW(model.parameters()), case.labels(model)

    def step() -> None:
        optimizer.zero_grad()
        with case.context():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def model_memory(case: ModelCase) -> int | None:
    """Peak memory of one call beyond weights and images; a call on a single patch compiles and loads code first."""
    patch = MODELS[case.name][1](**MODELS[case.name][2]).patch_size
    model_call(replace(case, img_size=patch, batch=1))()
    return measure.peak_extra_bytes(model_call(case), case.device)


def error_if_it_fits(case: ModelCase) -> float | None:
    """`model_error` of a case for whose call there is memory, else None."""
    try:
        error = model_error(case)
        model_call(case)()
    except (RuntimeError, MemoryError) as failure:
        if not (isinstance(failure, MemoryError) or lacks_memory(failure)):
            raise
        return None
    return error


def time_models(config: ModelBench, errors: dict[ModelCase, float]) -> tuple[list[Row], measure.Rounds]:
    """One contest of checked cases: time all in turns, weigh all."""
    cases = list(errors)
    first, names = cases[0], [str(case) for case in cases]
    image_bytes = first.images().nbytes
    samplers = [sampler(partial(model_call, case), case.device, image_bytes, graph=not case.train) for case in cases]
    rounds = measure.interleave(samplers, config.rounds)
    memory = {str(case): peak(model_memory, case.device, case) if config.memory else None for case in cases}
    with torch.device("meta"):
        length = create_model(first.name, img_size=first.img_size).config.num_tokens
    size = f"{first.img_size} x {first.img_size} pixels, batch {config.batch}, {config.dtype}"
    mode = "training step" if config.train else "inference"
    common = {"case": size, "length": length, "mode": mode, "items": config.batch, "side": first.img_size}
    weighed = {str(case): error for case, error in errors.items()}
    return summarise(names, rounds, extra_bytes=memory, error=weighed, **common), rounds


def bench_model(config: ModelBench) -> Report:
    """Check, time and weigh every model at every image size; what finds no memory is named.

    Raises ValueError for a configuration that cannot be, if a variant differs from its reference, and if nothing fits.
    """
    config.check()
    contests, too_large = [], []
    with use_threads(config.threads):
        for cases in config.cases():
            errors = {case: error for case in cases if (error := error_if_it_fits(case)) is not None}
            too_large += [f"{case} at {case.img_size} pixels" for case in cases if case not in errors]
            contests += [time_models(config, errors)] if errors else []
        if not contests:
            raise ValueError(f"batch is {config.batch}; it must be smaller, or img_size: nothing fits into memory")
        return collect("whole models", config, contests, too_large)
