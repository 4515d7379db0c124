"""The command line: every command runs, and no mistake ends in a traceback."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from minivim import cli, create_model, list_models, to_official
from minivim.cli.commands import next_commands
from minivim.cli.flags import spell_out_switches
from minivim.models import checkpoints
from minivim.train.recipes import TrainConfig
from tests.fuzz_commands import failures

pytest.importorskip("tyro", reason="the command line needs the extra 'train'")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, run in this process."""
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a very short run on the digits."""
    out = tmp_path_factory.mktemp("run") / "digits"
    flags = "--epochs 1 --depth 1 --embed-dim 16 --batch-size 719 --no-progress --threads 1"
    assert cli.main(["train", "--data", "digits", "--out", str(out), *flags.split()]) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint for the digits, as `train` writes it, with random weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    model = create_model("vim_nano_patch2_8", depth=1, embed_dim=16)
    checkpoints.save(model, path, {"classes": list("0123456789"), "mean": (0.3,) * 3, "std": (0.3,) * 3})
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """An image file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "seven.png"
    Image.new("RGB", (12, 9), (200, 100, 0)).save(path)
    return path


def test_help_names_every_command(capsys):
    code, out, err = run(capsys, "--help")
    assert code == 0 and err == ""
    assert all(
        f"  {name} " in out
        for name in ("train", "eval", "predict", "models", "doctor", "flops", "bench", "grade", "export")
    )
    assert run(capsys) == (0, out, "")


def test_version_is_the_installed_one(capsys):
    assert run(capsys, "--version") == (0, f"minivim {version('minivim')}\n", "")
    assert run(capsys, "--version", "now")[0] == 2


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["eval"],
        ["predict"],
        ["models"],
        ["doctor"],
        ["flops"],
        ["grade"],
        ["export"],
        ["bench"],
        ["bench", "scan"],
        ["bench", "model"],
        ["bench", "data"],
    ],
)
def test_each_command_explains_its_flags(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert code == 0 and err == "" and out.startswith("usage: minivim " + " ".join(command))
    assert max(map(len, out.splitlines())) <= 80 and "None" not in out
    assert command == ["bench"] or out.rpartition("examples:\n")[2].startswith("  minivim " + " ".join(command))


def test_help_shows_the_true_defaults(capsys):
    text = " ".join(run(capsys, "train", "--help")[1].split())
    assert "Peak learning rate of AdamW. (default: 0.001; digits 0.003," in text
    assert "Number of blocks; default: the model's own (shapes 2, cifar10_cpu 4, cifar10_cpu_long 5)." in text
    text = " ".join(run(capsys, "bench", "scan", "--help")[1].split())
    assert "of all inputs. (default: on)" in text and "N, the states of a channel. (default: 16)" in text


def test_every_training_field_is_a_flag(capsys):
    _, out, _ = run(capsys, "train", "--help")
    for name in TrainConfig.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in out


def test_models_prints_the_true_counts(capsys):
    code, out, _ = run(capsys, "models")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert code == 0 and list(rows) == list_models()
    assert rows["vim_tiny_patch16_224"] == ["7,148,008", "197", "224x224"]
    nano = create_model("vim_nano_patch2_8")
    assert rows["vim_nano_patch2_8"] == [f"{sum(p.numel() for p in nano.parameters()):,}", "17", "8x8"]


def test_doctor_tests_each_backend_that_can_run(capsys):
    from minivim.ops import available_backends

    code, out, _ = run(capsys, "doctor")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert code == 0 and f"torch {version('torch')}," in out and f"threads: {torch.get_num_threads()}" in out
    assert f'"auto" picks {available_backends("cpu")[0]}' in out
    assert all(re.search(r"right, \d+\.\d\d ms", lines[name]) for name in available_backends("cpu"))


def test_doctor_says_when_a_backend_is_wrong(capsys, monkeypatch):
    from minivim.ops import implementations

    reference = implementations.load("reference")
    halved = reference._replace(conv=lambda *inputs: reference.conv(*inputs) / 2)
    halved = halved._replace(bidirectional_conv=lambda x, a, b: (halved.conv(x, *a, False), halved.conv(x, *b, True)))
    monkeypatch.setitem(implementations.LOADED, "reference", halved)
    monkeypatch.setitem(implementations.INSTALLED, "numba", False)
    _, out, _ = run(capsys, "doctor")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert "WRONG: its convolution differs from that of 'chunked' by 5.0e-01" in lines["reference"]
    assert "WRONG: its convolution differs from that of 'reference' by" in lines["chunked"]


def test_doctor_says_what_is_missing_and_how_to_get_it(capsys, monkeypatch):
    from minivim.bench import measure
    from minivim.ops import implementations

    monkeypatch.setattr(measure, "version", lambda name: None)
    monkeypatch.setitem(implementations.INSTALLED, "numba", False)
    _, out, _ = run(capsys, "doctor")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "missing" in lines["tyro"] and "pip install 'minivim[train]'" in lines["tyro"]
    assert '"auto" picks chunked' in out
    assert "numba is not installed; install it with: pip install 'minivim[numba]'" in out


@pytest.mark.parametrize("command", [["train"], ["eval", "x", "--data", "digits"], ["bench", "scan"], ["grade", "x"]])
def test_without_tyro_the_flags_name_the_extra(capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "tyro", None)
    code, _, err = run(capsys, *command)
    assert code == 2 and "tyro" in err and "pip install 'minivim[train]'" in err
    assert run(capsys, "--help")[0] == run(capsys, "models")[0] == 0


def test_train_writes_what_was_asked_for(trained):
    config = json.loads((trained / "config.json").read_text())
    asked = {"epochs": 1, "depth": 1, "embed_dim": 16, "batch_size": 719, "progress": False, "threads": 1}
    assert {name: config[name] for name in asked} == asked
    assert config["lr"] == 3e-3 and config["resume"] is False  # the preset's, where nothing was said
    assert (trained / "last.safetensors").exists()


def test_a_switch_is_a_flag_without_a_value():
    spelled = spell_out_switches(TrainConfig, ["--resume", "--no-bf16", "--progress", "False", "--out", "x"])
    assert spelled == ["--resume", "True", "--bf16", "False", "--progress", "False", "--out", "x"]
    spelled = spell_out_switches(TrainConfig, ["--no-pos-embed", "--pos_embed", "--scan_order", "rows"])
    assert spelled == ["--pos-embed", "False", "--pos-embed", "True", "--scan_order", "rows"]


def test_resume_takes_the_run_up(capsys, trained):
    before = (trained / "metrics.jsonl").read_text()
    assert run(capsys, "train", "--out", str(trained), "--resume", "--no-progress")[0] == 0
    assert (trained / "metrics.jsonl").read_text() == before  # it was complete


def test_eval_prints_what_evaluate_returns(capsys, checkpoint):
    from minivim.train.prediction import evaluate

    code, out, _ = run(capsys, "eval", str(checkpoint), "--data", "digits")
    found = evaluate(checkpoint, "digits")
    assert code == 0 and out.startswith(f"{found['images']} images, accuracy {found['accuracy']:.2%}")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [str(digit) for digit in range(10)]


def test_export_writes_a_file_and_checks_it(capsys, checkpoint, tmp_path, unchecked):
    pytest.importorskip("onnxscript", reason="export needs the extra 'onnx'")
    import onnx

    code, out, _ = run(capsys, "export", str(checkpoint), str(tmp_path / "digits.onnx"))
    assert code == 0 and out.startswith(f"{tmp_path / 'digits.onnx'}: 0.") and out.count("\n") == 1
    assert "image (batch, 3, 8, 8) -> logits (batch, 10), 2 Scan nodes; onnxruntime differs from PyTorch by" in out
    known = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "digits.onnx").metadata_props}
    assert known["classes"] == list("0123456789") and known["mean"] == [0.3] * 3


def test_export_halves_the_weights(capsys, checkpoint, tmp_path):
    file = tmp_path / "half.safetensors"
    code, out, err = run(capsys, "export", str(checkpoint), str(file))
    before, after = checkpoints.read_file(checkpoint)[0], checkpoints.read_file(file)[0]
    count = sum(tensor.numel() for tensor in before.values())
    assert (code, err) == (0, "") and f"{count:,} weights in bfloat16" in out
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in before.items())
    assert checkpoints.load_extra(checkpoint).items() <= checkpoints.load_extra(file).items()
    assert {p.dtype for p in checkpoints.load(file).parameters()} == {torch.float32}
    assert file.stat().st_size < checkpoint.stat().st_size - 1.9 * count


def test_export_takes_official_files_too(capsys, tmp_path, unchecked):
    pytest.importorskip("onnxscript", reason="export needs the extra 'onnx'")
    model = create_model("vim_nano_patch2_8", depth=1, embed_dim=16)
    torch.save({"model": to_official(model)}, tmp_path / "official.pth")
    code, out, _ = run(capsys, "export", str(tmp_path / "official.pth"), str(tmp_path / "official.onnx"))
    assert code == 0 and "logits (batch, 10), 2 Scan nodes" in out


def test_predict_prints_the_likeliest_classes(capsys, checkpoint, picture):
    from minivim.train.prediction import predict

    code, out, _ = run(capsys, "predict", str(checkpoint), str(picture), str(picture), "--top", "2")
    [(first, p), (second, q)], _ = predict(checkpoint, [picture, picture], top=2)
    assert code == 0 and out.splitlines() == [f"{picture}  {first} {p:.1%}  {second} {q:.1%}"] * 2


# arguments, and what the sentence must hold: the argument's name, what it was, what it must be
MISTAKES = [
    (["fly"], ["command", "'fly'", "must be one of train, eval"]),
    (["models", "--all"], ["models", "'--all'", "must be called without arguments"]),
    (["doctor", "now"], ["doctor", "'now'", "must be called without arguments"]),
    (["train", "--epochs", "many"], ["--epochs", "'many'", "must be given as --epochs INT"]),
    (["train", "--epochs", "0"], ["epochs", "0", "must be at least 1"]),
    (["train", "--lr", "-1"], ["lr", "-1", "must be at least 0"]),
    (["train", "--smoothing", "1.5"], ["smoothing", "1.5", "must be from 0 to 1"]),
    (["train", "--epoks", "3"], ["Unrecognized", "--epoks", "--epochs"]),
    (["train", "--lr"], ["Missing value", "--lr", "Expected 1"]),
    (["train", "--preset", "best"], ["preset", "'best'", "must be one of"]),
    (["train", "--resume"], ["resume", "out", "must be the folder"]),
    (["train", "--resume", "perhaps"], ["perhaps", "Unrecognized"]),
    (["train", "--out", "OUT", "--data", "nowhere"], ["data", "'nowhere'", "must be one of digits"]),
    (["train", "--out", "OUT", "--model", "vit"], ["model is 'vit'", "must be one of"]),
    (["train", "--out", "OUT", "--patch-size", "3"], ["img_size is 8", "multiple of patch_size 3"]),
    (["train", "--out", "OUT", "--backend", "cuda"], ["backend", "'cuda'", "must be one of"]),
    (["train", "--out", "OUT", "--device", "tpu9"], ["device", "'tpu9'", "must be a device", "cpu"]),
    (["train", "--out", "OUT", "--batch-size", "2000"], ["batch_size", "2000", "must be at most"]),
    (["train", "--data", ""], ["--data is ''", "must not be empty"]),
    (["train", "--out="], ["--out is ''", "must not be empty"]),
    (["eval", "CHECKPOINT", "--data", "digits", "--device", ""], ["--device is ''", "must not be empty"]),
    (["train", "--epochs", "3", "--epochs=4"], ["--epochs is given 2 times", "must be given once"]),
    (["train", "--bf16=perhaps"], ["--bf16 is 'perhaps'", "must be given as --bf16 or --no-bf16"]),
    (["bench", "scan", "--memory=no"], ["--memory is 'no'", "must be given as --memory or --no-memory"]),
    (["train", "--seed", str(2**64)], ["seed is 18446744073709551616", "must be from 0 to 9223372036854775807"]),
    (["train", "--mixup", "inf"], ["mixup is inf", "must be from 0 to 1000"]),
    (["train", "--lr", "inf"], ["lr is inf", "must be finite"]),
    (["train", "--crop", "999999999"], ["crop is 999999999", "must be from 0 to 256"]),
    (["train", "--out", "OUT", "--device", "meta"], ["device is 'meta'", "must be a device that this machine has"]),
    (["train", "--out", "TRAINED", "--resume", "--preset", "shapes"], ["preset is 'shapes'", "must be 'digits'"]),
    (["eval", "CHECKPOINT", "--data", "digits", "--workers", "-5"], ["workers is -5", "at least 0"]),
    (["grade", "TEXT", "--memory-limit", "inf"], ["memory_limit is inf", "at most"]),
    (["grade", "TEXT", "--time-limit", "nan"], ["time_limit is nan", "at most"]),
    (["eval", "--data", "digits"], ["Missing", "A file written by minivim train", "required"]),
    (["eval", "none.safetensors", "--data", "digits"], ["'none.safetensors'", "must be an existing file"]),
    (["eval", "TEXT", "--data", "digits"], ["TEXT", "must be a safetensors file"]),
    (["eval", "CHECKPOINT", "--data", "shapes"], ["data", "disc", "must be the model's"]),
    (["eval", "CHECKPOINT", "--data", "nowhere"], ["data", "'nowhere'", "must be one of digits"]),
    (["eval", "CHECKPOINT", "--data", "digits", "--backend", "fast"], ["backend", "'fast'", "must be one of"]),
    (["export", "none.pth", "OUT"], ["'none.pth'", "must be an existing file"]),
    (["export", "CHECKPOINT", "no/x.onnx"], ["path", "'no/x.onnx'", "must be in a folder that exists"]),
    (["predict", "CHECKPOINT"], ["image", "must name at least one image file"]),
    (["predict", "CHECKPOINT", "none.png"], ["image", "'none.png'", "must be an existing file"]),
    (["predict", "CHECKPOINT", "TEXT"], ["image", "TEXT", "could not be read"]),
    (["predict", "CHECKPOINT", "PICTURE", "--top", "0"], ["top", "0", "must be a whole number of at least 1"]),
    (["predict", "TEXT", "PICTURE"], ["TEXT", "must be a safetensors file"]),
    (["bench"], ["bench", "''", "must be one of scan, model"]),
    (["bench", "disk"], ["bench", "'disk'", "must be one of scan, model"]),
    (["bench", "scan", "--shape", "1,384"], ["shape", "'1,384'", "must be three whole numbers B,E,L"]),
    (["bench", "scan", "--shape", "1,0,197"], ["shape", "'1,0,197'", "must be at least 1"]),
    (["bench", "scan", "--state", "0"], ["state", "0", "must be a whole number of at least 1"]),
    (["bench", "scan", "--rounds", "0"], ["rounds", "0", "must be a whole number of at least 1"]),
    (["bench", "scan", "--rounds", "2.5"], ["--rounds", "'2.5'", "must be given as --rounds INT"]),
    (["bench", "scan", "--threads", "-2"], ["threads", "-2", "must be a whole number of at least 1"]),
    (["bench", "scan", "--dtype", "int8"], ["dtype", "'int8'", "must be one of 'float32'"]),
    (["bench", "scan", "--device", "tpu"], ["device", "'tpu'", "must be one of 'cpu', 'cuda'"]),
    (["bench", "scan", "--backend", "turbo"], ["backend", "'turbo'", "must be one of"]),
    (["bench", "scan", "--against", "torch"], ["against", "'torch'", "must be module:function"]),
    (["bench", "scan", "--against", "no_such:f"], ["against", "'no_such:f'", "can be imported"]),
    (["bench", "scan", "--against", "math:pi"], ["against", "'math:pi'", "must name a function"]),
    (["bench", "scan", "--out", ".."], ["out", "must end in a name"]),
    (["bench", "model", "--model", "resnet"], ["model", "'resnet'", "must be one of 'vim_tiny"]),
    (["bench", "model", "--img-size", "100"], ["img_size", "100", "must be a multiple of patch_size 16"]),
    (["bench", "model", "--attention", "slow"], ["attention", "'slow'", "must be one of 'fused', 'naive'"]),
    (["bench", "model", "--batch", "0"], ["batch", "0", "must be a whole number of at least 1"]),
    (["bench", "model", "--dtype", "float16"], ["dtype", "'float16'", "must be one of 'float32', 'bfloat16'"]),
]


@pytest.mark.parametrize("arguments, words", MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_sentence(capsys, unchecked, tmp_path, trained, checkpoint, picture, arguments, words):
    text = tmp_path / "text.safetensors"
    text.write_text("not a checkpoint, not a picture")
    places = {"OUT": tmp_path / "run", "TEXT": text, "TRAINED": trained, "CHECKPOINT": checkpoint, "PICTURE": picture}
    code, out, err = run(capsys, *(str(places.get(argument, argument)) for argument in arguments))
    assert code == 2 and out == ""
    assert err.startswith("minivim: error: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert str(places.get(word, word)) in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_not_there(capsys):
    code, _, err = run(capsys, "bench", "scan", "--device", "cuda")
    assert code == 2 and "device is 'cuda'; it must be 'cpu' here" in err


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`python ARGUMENTS`, its output as text."""
    options = {"stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace", "timeout": 300} | options
    return subprocess.run([sys.executable, *arguments], stderr=subprocess.PIPE, **options)


def test_help_without_docstrings_is_the_same(capsys):
    assert python("-OO", "-m", "minivim", "eval", "--help").stdout == run(capsys, "eval", "--help")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe without a reader is another error there")
def test_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = python("-m", "minivim", "--help", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_narrow_console_gets_what_it_can_show(tmp_path, picture):
    model = create_model("vim_nano_patch2_8", depth=1, embed_dim=16, num_classes=2)
    names = {"classes": ["猫", "\x1b[31mdog\n"], "mean": (0.3,) * 3, "std": (0.3,) * 3}
    checkpoints.save(model, tmp_path / "a.safetensors", names)
    done = python(
        "-m", "minivim", "predict", str(tmp_path / "a.safetensors"), str(picture),
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "\\u732b" in done.stdout and "\\x1b[31mdog\\n" in done.stdout and done.stdout.count("\n") == 1


def test_a_run_ends_with_the_commands_that_come_next(trained, tmp_path):
    assert next_commands(trained) == []  # it was told to be silent
    out = tmp_path / "it's mine"
    out.mkdir()
    saved = json.loads((trained / "config.json").read_text()) | {"progress": True, "data": "my photos"}
    (out / "config.json").write_text(json.dumps(saved))
    title, *lines = next_commands(out)
    weights = str(out / "best.safetensors")
    assert title == "next:" and [shlex.split(line) for line in lines] == [
        ["minivim", "predict", weights, "IMAGE"], ["minivim", "eval", weights, "--data", "my photos"]
    ]  # fmt: skip


def test_wrong_command_lines_are_refused_whatever_they_say(unchecked):
    tried, found = failures(count=150)
    assert found == []
    assert tried >= 150


def test_too_little_memory_is_a_sentence_and_a_bug_is_not():
    with pytest.raises(RuntimeError) as huge:
        torch.empty(1 << 58)
    assert (
        cli.is_mistake(huge.value) and not cli.is_mistake(RuntimeError("a bug")) and not cli.is_mistake(KeyError("x"))
    )


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "models", replace(cli.COMMANDS["models"], run=interrupted))
    assert run(capsys, "models") == (130, "", "minivim: interrupted\n")


@pytest.mark.parametrize("arguments, code", [(["models"], 0), (["fly"], 2), (["train", "--epochs", "many"], 2)])
def test_python_dash_m_is_the_same_command(arguments, code):
    done = subprocess.run([sys.executable, "-m", "minivim", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert (done.stdout.count("\n") == 1 + len(list_models())) if code == 0 else (done.stderr.count("\n") == 1)
