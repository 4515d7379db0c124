"""A compiled run: the same numbers and names as without, one graph, and a plain word where it cannot be."""

import json
import sys
import sysconfig
from functools import partial

import pytest
import torch

import minivim.train.compile as compile_module
from minivim.models import checkpoints, create_model
from minivim.models.backbone import DropPath
from minivim.ops import verdict
from minivim.processes import Team
from minivim.train.compile import lacking
from minivim.train.loop import Trainer, train
from minivim.train.recipes import TrainConfig, resolve
from tests.train.small_runs import cut_after, records_of, small, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("unchecked")  # the compiler cannot trace the checks

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch) -> list:
    """The graphs that torch.compile makes, run as they are: PyTorch's own compiler would take half a minute for one."""
    made = []

    def keep(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return made


def test_a_compiled_run_ends_where_a_plain_one_does_and_its_files_have_the_same_names(tmp_path, capsys):
    if missing := lacking(CPU):
        pytest.skip(f"torch.compile cannot work here, which lacks {missing}")
    short = {
        "data": "digits",
        "epochs": 1,
        "depth": 1,
        "batch_size": 479,
        "threads": 1,
        "val_share": 0.0,
    }  # three steps
    out = {compile: tmp_path / str(compile) for compile in (False, True)}
    for compile in out:
        train(TrainConfig(out=str(out[compile]), compile=compile, **short))
        assert (", compiled in the first step" in capsys.readouterr().out) == compile
    plain, compiled = (records_of(folder)[0] for folder in out.values())
    assert compiled == pytest.approx(plain, abs=1e-4) and compiled["step"] == 3
    for name in ("best.safetensors", "last.safetensors"):
        plain, compiled = (checkpoints.read_file(folder / name)[0] for folder in out.values())
        assert plain.keys() == compiled.keys() == create_model("vim_nano_patch2_8", depth=1).state_dict().keys()
        assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)
    plain, compiled = (torch.load(folder / "state.pt", weights_only=True) for folder in out.values())
    for part in ("model", "average"):
        assert plain[part].keys() == compiled[part].keys()
    assert plain["optimizer"]["param_groups"] == compiled["optimizer"]["param_groups"]


CASES = {
    "plain": ({}, 1),
    "whole parts": ({"accumulate": 4}, 1),
    "unequal parts": ({"accumulate": 3}, 2),  # 7, 7 and 6 images
    "bfloat16": ({"bf16": True}, 1),
    "without average": ({"ema": 0.0}, 1),  # the trained weights themselves are evaluated
    "one direction": ({"directions": 1, "scan_order": "snake"}, 1),
    "chunked": ({"backend": "chunked"}, 1),
    "deit": ({"model": "deit_tiny_patch4_32", "embed_dim": 48}, 1),
    "the head alone": ({"freeze": True, "init": "old.safetensors"}, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_compiles_one_graph_a_size_and_no_later_one_does(
    case, graphs, small_data, tmp_path, monkeypatch
):
    changes, count = CASES[case]
    monkeypatch.chdir(tmp_path)
    old = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, patch_size=4)
    checkpoints.save(old, "old.safetensors")
    config, made = small(tmp_path, epochs=2, **changes), []
    plain = train(config)
    assert graphs == []
    original = Trainer.train_step

    def step(self, images, labels):
        original(self, images, labels)
        made.append(len(graphs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        compiled = train(small(tmp_path, epochs=2, compile=True, out=str(tmp_path / "compiled"), **changes))
    assert made == [count] * 16 and len(graphs) == count
    for graph in graphs:
        assert "SymInt" not in graph.code  # it is for one size, which is known to it
        assert not {"item", "tolist"} & {node.target for node in graph.graph.nodes}  # it never waits for the device
    for one, other in zip(plain.history, compiled.history, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-4)
    assert type(compiled.model) is type(plain.model)
    assert compiled.model.state_dict().keys() == tensors_of(compiled.out).keys() == tensors_of(plain.out).keys()


def test_drop_path_is_part_of_the_graph(graphs, small_data, tmp_path):
    train(small(tmp_path, epochs=1, depth=2, drop_path=0.5, compile=True))
    assert len(graphs) == 1 and "bernoulli" in graphs[0].code


def test_a_model_that_would_be_compiled_in_pieces_is_refused(graphs, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(DropPath, "forward", lambda self, x: x if x.sum() < 1e9 else -x)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        train(small(tmp_path, epochs=1, compile=True))


def test_compile_may_change_whenever_a_run_resumes(graphs, small_data, tmp_path, monkeypatch):
    whole = train(small(tmp_path, out=str(tmp_path / "whole")))
    for cut, compile in ((5, True), (13, False)):
        with monkeypatch.context() as patch:
            cut_after(patch, cut)
            with pytest.raises(InterruptedError):
                train(small(tmp_path, resume=True, compile=compile, save_seconds=0.0))
        assert json.loads((tmp_path / "run" / "config.json").read_text())["compile"] == compile
    train(small(tmp_path, resume=True, compile=True))
    assert len(graphs) == 2  # the first part's and the last one's
    assert records_of(tmp_path / "run")[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], abs=1e-4)
    for name, tensor in tensors_of(whole.out).items():
        assert torch.allclose(tensor, tensors_of(tmp_path / "run")[name], atol=1e-4), name


def test_runs_of_many_models_in_one_process_do_not_use_up_the_compilers_patience(graphs, small_data, tmp_path):
    for count, width in enumerate((16, 24, 32), 1):
        with torch._dynamo.config.patch(recompile_limit=1):
            train(small(tmp_path, out=str(tmp_path / str(width)), embed_dim=width, epochs=1, compile=True))
        assert len(graphs) == count


def test_auto_is_asked_for_its_verdict_before_anything_is_compiled(graphs, small_data, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    asked = []

    def check(name, device):
        asked.append((name, len(graphs)))
        verdict.known[name, str(device)] = True

    monkeypatch.setattr(verdict, "known", {})
    monkeypatch.setattr(verdict, "verdicts", dict)
    monkeypatch.setattr(verdict, "check", check)
    config = resolve(small(tmp_path, compile=True, backend="auto"))
    trainer = Trainer(config, small_data, Team(0, 1, CPU))
    assert trainer.backend == "numba" and asked == [("numba", 0)]
    trainer.train_step(small_data.train_images[:20], small_data.train_labels[:20])
    assert len(graphs) == len(asked) == 1


def test_a_compiled_run_says_so(graphs, small_data, tmp_path, capsys):
    train(small(tmp_path, epochs=1, progress=True, compile=True))
    assert "compiled in the first step" in capsys.readouterr().out


# ---- where it cannot work --------------------------------------------------------------------------------------------


def absent(monkeypatch, what: str) -> None:
    """Take something away that the compiler needs."""
    monkeypatch.delenv("CXX", raising=False)
    if what == "compiler":
        monkeypatch.setattr(compile_module.shutil, "which", lambda command: None)
    elif what == "the compiler that was named":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif what == "headers":
        monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    else:
        monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))


ABSENT = {
    "compiler": r"lacks a compiler: (g\+\+|clang\+\+|cl) is not found; install it, or name yours in the variable CXX",
    "the compiler that was named": "lacks a compiler: no-such-compiler is not found",
    "headers": r"lacks Python's headers: .nowhere.Python\.h is not found",
    "python": r"lacks what PyTorch needs \(torch\.compile is not supported on Python 3",
}


@pytest.mark.parametrize("what", ABSENT)
def test_what_is_missing_is_said_before_the_data_are_loaded(what, tmp_path, monkeypatch):
    monkeypatch.setattr("minivim.train.loop.load_data", lambda *args, **options: pytest.fail("data were loaded"))
    absent(monkeypatch, what)
    with pytest.raises(ValueError, match=f"compile is True; it must be False on this machine, which {ABSENT[what]}"):
        train(small(tmp_path, compile=True))
    assert not (tmp_path / "run").exists()


def test_a_gpu_needs_triton_and_a_c_compiler(monkeypatch):
    GPU = torch.device("cuda:0")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compile_module, "find_spec", lambda name: object())
    monkeypatch.setattr(compile_module.shutil, "which", lambda command: None)
    assert "gcc or clang is not found" in lacking(GPU)
    monkeypatch.setattr(compile_module, "find_spec", lambda name: None)
    assert "triton, which is not installed" in lacking(GPU)
