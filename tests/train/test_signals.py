"""SIGINT, SIGTERM and SIGHUP: a run saves its state, says how to go on, and ends with the code that is the custom."""

import os
import signal
import time

import pytest
import torch

from minivim import cli
from minivim.train import train
from minivim.train.loop import Trainer
from minivim.train.signals import NUMBERS, Signals
from tests.train.small_runs import records_of, same, small, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def heard():
    """The signals as a terminal leaves them, also where the tests run below nohup."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, was in before.items():
        signal.signal(number, was)


def signal_in(monkeypatch, step: int, *numbers: int) -> None:
    """Let the process get the signals in the midst of a step."""
    original = Trainer.train_step

    def train_step(self, images, labels):
        if self.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        original(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_state_and_prints_what_resumes_it(small_data, tmp_path, monkeypatch, capfd, number, code):
    before = [signal.getsignal(each) for each in NUMBERS]
    config = small(tmp_path, out=str(tmp_path / "a run"), drop_path=0.2)
    with monkeypatch.context() as patch:
        signal_in(patch, 9, number)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            train(config)
    assert caught.type is KeyboardInterrupt if code == 130 else caught.value.code == code
    said = capfd.readouterr().err
    assert f"{number.name}: saving after this step" in said and "after step 10 of 24; the state is saved" in said
    command = f"minivim train --out '{tmp_path}/a run' --resume"
    assert said.rstrip().endswith(command)
    assert [signal.getsignal(each) for each in NUMBERS] == before
    assert torch.load(tmp_path / "a run" / "state.pt", weights_only=True)["step"] == 10
    assert cli.main(["train", "--out", f"{tmp_path}/a run", "--resume"]) == 0
    whole = train(small(tmp_path, out=str(tmp_path / "whole"), drop_path=0.2))
    assert same(tensors_of(whole.out), tensors_of(tmp_path / "a run"))
    assert records_of(whole.out) == records_of(tmp_path / "a run")


def test_the_command_line_ends_with_the_same_codes(small_data, tmp_path, monkeypatch, capfd):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with monkeypatch.context() as patch:
            signal_in(patch, 3, number)
            arguments = ["--embed-dim", "16", "--depth", "1", "--no-progress", "--out", str(tmp_path / str(code))]
            assert cli.main(["train", *arguments]) == code
        assert "Traceback" not in capfd.readouterr().err


def test_a_signal_in_the_last_step_finds_the_run_complete(small_data, tmp_path, monkeypatch):
    signal_in(monkeypatch, 7, signal.SIGTERM)
    assert len(train(small(tmp_path, epochs=1)).history) == 1


def test_a_second_signal_ends_at_once(small_data, tmp_path, monkeypatch):
    signal_in(monkeypatch, 9, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path))
    assert not (tmp_path / "run" / "state.pt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_comes_with_the_first_signal_is_the_same_one(capfd):
    with Signals(patience=0.2, speaks=False) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert capfd.readouterr().err == ""


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(patience=0.0, speaks=False) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_worker_leaves_the_run_to_its_parent():
    with Signals(patience=0.0, speaks=True) as signals:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0 if not signals.received else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
