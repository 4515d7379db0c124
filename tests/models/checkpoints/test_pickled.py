"""What a pickle may hold: plain values and a short list of harmless classes; nothing in it is ever run."""

import pickle
from argparse import Namespace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch

from minivim import cli, load_official
from minivim.models.checkpoints.pickled import read_pickled
from tests.models.checkpoints.reference import official_state


def test_a_command_line_of_a_training_script_is_read(tmp_path):
    numbers = {"lr": np.float64(0.5), "epochs": np.int32(3), "flag": np.bool_(True), "name": np.str_("vim")}
    plain = {"dtype": torch.bfloat16, "device": torch.device("cuda:1"), "betas": (0.9, None), "seeds": {1, 2}}
    args = Namespace(data_path=Path("/data/imagenet"), small=np.float32(0.25), **numbers, **plain)
    torch.save({"model": official_state(), "args": args, "best": np.float64(76.1)}, tmp_path / "a.pth")
    content = read_pickled(tmp_path / "a.pth")
    assert content["best"] == 76.1 and type(content["best"]) is float
    read = vars(content["args"])
    assert read == vars(args) | {"data_path": PurePosixPath("/data/imagenet")}
    assert [type(read[name]) for name in ("lr", "epochs", "flag", "name", "small")] == [float, int, bool, str, float]
    assert load_official(tmp_path / "a.pth").config.depth == 2


def test_numpys_numbers_of_both_ages_and_byte_orders(tmp_path):
    path = tmp_path / "a.pth"
    for dtype in ("f8", "i2", "i4", "u8", "f2"):
        torch.save({"x": np.array([1.5, 2.0]).astype(dtype)[1]}, path)
        assert read_pickled(path) == {"x": 2}
    data = pickle.dumps({"x": np.float64(0.5)}, protocol=2)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        old = data.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
        path.write_bytes(legacy(old))
        assert read_pickled(path) == {"x": 0.5}
    little = "\x00" * 6 + "\xe0?"  # the bytes of 0.5, which NumPy pickles as text
    assert little.encode() in data and b"X\x01\x00\x00\x00<" in data
    big = data.replace(little.encode(), little[::-1].encode()).replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>")
    path.write_bytes(legacy(big))
    assert read_pickled(path) == {"x": 0.5}


def legacy(data: bytes) -> bytes:
    """A pickle in a file as torch.save once wrote them: magic number, protocol, system, the object, no storages."""
    parts = [pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*parts, data, pickle.dumps([], protocol=2)])


def test_paths_of_other_systems_touch_no_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(b"\x80\x02cpathlib\nWindowsPath\nX\x03\x00\x00\x00C:\\X\x03\x00\x00\x00out\x86R."))
    assert read_pickled(path) == PureWindowsPath("C:\\", "out")
    path.write_bytes(legacy(b"\x80\x02cpathlib._local\nPosixPath\nX\x04\x00\x00\x00/out\x85R."))
    assert read_pickled(path) == PurePosixPath("/out")


class Evil:
    """Its pickle would create a file when read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "touch": lambda trace: Evil(Path.touch, trace),
    "eval": lambda trace: Evil(eval, f"open({str(trace)!r}, 'w')"),
    "open": lambda trace: Evil(open, str(trace), "w"),
    "getattr": lambda trace: Evil(getattr, Path(trace), "touch"),
    "numpy": lambda trace: Evil(np.save, str(trace), 3),
    "in a namespace": lambda trace: Namespace(model=Evil(open, str(trace), "w")),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("how", ["pickle", "torch", "args", "legacy"])
def test_code_in_a_pickle_is_not_run(make, how, tmp_path, capsys):
    path, value = tmp_path / "evil.pth", make(tmp_path / "trace")
    if how == "pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    elif how == "legacy":
        path.write_bytes(legacy(pickle.dumps(value, protocol=2)))
    else:
        torch.save(value if how == "torch" else {"model": official_state(), "args": value}, path)
    with pytest.raises(ValueError, match=r"evil.pth'; it must be a checkpoint that torch.load") as error:
        load_official(path)
    assert not (tmp_path / "trace").exists() and list(tmp_path.iterdir()) == [path]
    cause = error.value.__cause__ or (None if error.value.__suppress_context__ else error.value.__context__)
    assert cause is None and "False" not in str(error.value)  # torch's message advises to run it all the same
    assert cli.main(["eval", str(path), "--data", "digits"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and "weights_only=False" not in sentence


def test_what_was_refused_is_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"\(it holds torch.nn.modules.linear.Linear, which is no tensor or plain value\)"
    ):
        load_official(tmp_path / "a.pth")


def test_the_list_of_a_user_stays_as_it_was(tmp_path):
    torch.save({"model": official_state(), "args": Namespace(lr=1)}, tmp_path / "a.pth")
    with torch.serialization.safe_globals([Namespace]):
        before = set(torch.serialization.get_safe_globals())
        load_official(tmp_path / "a.pth")
        assert set(torch.serialization.get_safe_globals()) == before
    assert set(torch.serialization.get_safe_globals()) == before - {Namespace}
