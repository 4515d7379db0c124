"""A model as an ONNX file, with onnxruntime as the oracle: another program, another scan, the same numbers."""

import copy
import json
import re
from functools import cache

import pytest
import torch
from torch import nn

from minivim import MambaBlock, create_model, export_onnx
from minivim.models import export

onnx = pytest.importorskip("onnx", reason="these tests need the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="these tests need the extra 'onnx'")
pytest.importorskip("onnxscript", reason="these tests need the extra 'onnx'")
pytestmark = pytest.mark.usefixtures("unchecked")

# Each option is in one model at least; an export takes seconds, so several options share a model.
VIM = {"img_size": (6, 8), "embed_dim": 12, "depth": 1, "num_classes": 5}
MODELS = {
    "head, columns, one direction": {
        "cls_token": "head", "scan_order": "columns", "directions": 1, "pos_embed": False, "global_pool": "avg",
    },
    "double, snake, overlap, each token": {
        "cls_token": "double", "scan_order": "snake", "patch_size": 4, "stride": 2, "in_chans": 1, "global_pool": "",
    },
    "none, maximum, features": {
        "cls_token": "none", "global_pool": "max", "num_classes": 0, "state_dim": 5, "conv_kernel": 3, "dt_rank": 2,
    },
}  # fmt: skip


def run(path, x):
    """What onnxruntime computes, with the optimizations it has by default."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def assert_equal(model, path, shape, batches=(1, 3)):
    """The file is valid and gives the model's outputs, each within 1e-5 of the largest."""
    onnx.checker.check_model(str(path), full_check=True)
    for batch in batches:
        x = torch.randn(batch, *shape)
        expected = model(x).detach()
        torch.testing.assert_close(run(path, x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def nodes(graph):
    """All nodes, those of the bodies of Scan and the like too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def loops(path):
    return [node for node in nodes(onnx.load(path).graph) if node.op_type in ("Scan", "Loop")]


def perturbed(model):
    """The model with weights like trained ones: none is zero, no row is like another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vim")


@cache
def written(folder):
    """A Vim in bfloat16, in training but for one mixer; what a copy of it was before the export; its file."""
    model = perturbed(create_model("vim_nano_patch2_8", **VIM | {"depth": 2, "drop_path_rate": 0.5, "drop_rate": 0.5}))
    model = model.to(torch.bfloat16).set_backend("reference").train()
    model.blocks[0].mixer.eval()
    before = copy.deepcopy(model)
    extra = {"classes": ["one", "zwei"], "mean": (0.1, 0.2, 0.3), "std": [1, 2, 3], "recipe": {"epochs": 3}}
    export_onnx(model, folder / "vim.onnx", extra)
    return model, before, folder / "vim.onnx"


def test_the_model_stays_as_it_is(folder):
    model, before, _ = written(folder)
    for module, was in zip(model.modules(), before.modules(), strict=True):
        assert (module.training, getattr(module, "backend", None)) == (was.training, getattr(was, "backend", None))
    for (name, tensor), was in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, was) and tensor.dtype == was.dtype == torch.bfloat16, name


def test_a_vim_equals_its_file_in_float32_and_evaluation_mode(folder):
    model, _, path = written(folder)
    assert_equal(copy.deepcopy(model).float().eval(), path, (3, 6, 8))


def test_each_direction_of_each_block_is_one_scan_and_no_array_holds_all_states(folder):
    model, _, path = written(folder)
    assert [node.op_type for node in loops(path)] == ["Scan"] * 2 * 2
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = [{d.dim_value for d in value.type.tensor_type.shape.dim} for value in graph.value_info]
    E, N, L = model.config.inner_dim, model.config.state_dim, model.config.num_tokens
    assert len(shapes) > 100 and {L, E, 0, 1} in shapes and len({L, E, N}) == 3  # 0: the batch
    assert not [shape for shape in shapes if {L, E, N} <= shape]


def test_the_file_says_what_its_user_must_know_and_nothing_of_this_machine(folder):
    model, _, path = written(folder)
    known = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert known.pop("config")["img_size"] == [6, 8]
    assert known == {"classes": ["one", "zwei"], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "crop_pct": 1.0}
    assert export.metadata(model, {})["mean"] == model.default_cfg["mean"]
    assert b".py" not in path.read_bytes()  # the exporter notes the lines of code that each node comes from
    assert re.fullmatch(
        rf"{re.escape(str(path))}: 0\.\d MB, image \(batch, 3, 6, 8\) -> logits \(batch, 5\), 4 Scan nodes; "
        r"onnxruntime differs from PyTorch by [\d.]+e-0[678] of the largest output",
        export.describe(model, path),
    )


def test_without_onnxruntime_the_sentence_says_that_nothing_was_checked(folder, monkeypatch):
    model, _, path = written(folder)
    monkeypatch.setattr(export, "version", lambda name: None)
    assert export.describe(model, path).endswith("4 Scan nodes; not checked, as onnxruntime is not installed")


def test_the_difference_sees_another_model(folder):
    model, _, path = written(folder)
    other = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        other.head.bias.add_(1)
    x = torch.randn(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert export.difference(other, path) == pytest.approx(1 / other(x).abs().max().item(), rel=1e-3)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_vim_with_options_equals_its_file(options, tmp_path):
    model = perturbed(create_model("vim_nano_patch2_8", **VIM | options))
    export_onnx(model, tmp_path / "vim.onnx")
    config = model.config
    assert_equal(model.eval(), tmp_path / "vim.onnx", (config.in_chans, *config.image_shape))
    assert [node.op_type for node in loops(tmp_path / "vim.onnx")] == ["Scan"] * config.directions
    (output,) = onnx.load(tmp_path / "vim.onnx").graph.output
    assert output.name == ("logits" if config.num_classes else "features")


def test_a_deit_equals_its_file(tmp_path):
    model = create_model("deit_tiny_patch4_32", img_size=8, embed_dim=12, depth=1, drop_path_rate=0.5)
    export_onnx(perturbed(model), tmp_path / "deit.onnx")
    assert_equal(model.eval(), tmp_path / "deit.onnx", (3, 8, 8))


def test_patches_are_one_convolution(folder):
    kinds = [node.op_type for node in nodes(onnx.load(written(folder)[2]).graph)]
    assert kinds.count("Conv") == 1 + 2 * 2 and "Gather" not in kinds


def test_a_mamba_block_equals_its_file_for_any_number_of_tokens(tmp_path):
    model = perturbed(MambaBlock(6))
    export_onnx(model, tmp_path / "block.onnx")
    for length in (1, 3, 50):
        assert_equal(model, tmp_path / "block.onnx", (length, 6))
    session = onnxruntime.InferenceSession(str(tmp_path / "block.onnx"))
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("tokens", ["batch", "length", 6])]
    assert [node.op_type for node in loops(tmp_path / "block.onnx")] == ["Scan"]


@pytest.mark.parametrize(
    ("model", "path", "error", "message"),
    [
        (nn.Linear(2, 2), "x.onnx", TypeError, "model is a Linear; it must be a VisionMamba, a DeiT or a MambaBlock"),
        (nn.DataParallel(MambaBlock(4)), "x.onnx", TypeError, "model is a DataParallel; it must be"),
        (torch.compile(MambaBlock(4)), "x.onnx", TypeError, "model is a OptimizedModule; it must be"),
        (MambaBlock(4), "nowhere/x.onnx", ValueError, "nowhere/x.onnx'; it must be in a folder that exists"),
    ],
)
def test_mistakes_are_named_before_the_work_begins(model, path, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "translate", lambda model: pytest.fail("it has begun"))
    with pytest.raises(error, match=message):
        export_onnx(model, tmp_path / path)


def test_a_model_that_one_file_cannot_hold_is_refused(tmp_path):
    with torch.device("meta"):
        model = create_model("vim_base_patch16_224", embed_dim=3072)
    with pytest.raises(ValueError, match=r"model has 5\.\d GiB of weights; it must have less than 2 GiB"):
        export_onnx(model, tmp_path / "x.onnx")
