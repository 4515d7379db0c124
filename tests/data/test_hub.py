"""Sets on the hub: what is asked for, what is in the cache, what is said without a connection."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from minivim.data import hub_reachable, load_data

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


def picture(colour: tuple) -> Image.Image:
    return Image.new("RGB", (12, 12), colour)


LOAD = "import sys, minivim.data as d; print(len(d.load_data(sys.argv[1]).train_labels))"


def run_offline(source: str, tmp_path, **environment) -> subprocess.CompletedProcess:
    """Load in a fresh process in which the hub's address leads nowhere and its cache is tmp_path."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    environment.pop("HF_HUB_OFFLINE", None)
    for name in ("HTTPS_PROXY", "https_proxy"):
        environment.pop(name, None)
    command = [sys.executable, "-c", LOAD, source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_offline_the_hub_is_refused_at_once_in_one_sentence(tmp_path):
    done = run_offline("cifar10", tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"ConnectionError: data is 'cifar10', .* hub cannot be reached nor has its cache uoft-cs/cifar10", last
    )
    assert "Retrying" not in done.stderr  # the library's own five tries take 23 s


def test_a_cached_set_loads_offline(tmp_path):
    """What an earlier download left in the cache is used without a connection."""
    arrow = tmp_path / "datasets" / "uoft-cs___cifar10" / "plain_text" / "0.0.0" / ("0" * 40)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [picture((value, 0, 0)) for value in range(10)], "label": [0, 1] * 5}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "source" / "train.parquet")
    splits = datasets.load_dataset(
        "parquet", data_files={"train": str(tmp_path / "source" / "train.parquet")}, cache_dir=str(tmp_path / "build")
    )
    built = next(path.parent for path in (tmp_path / "build").rglob("dataset_info.json"))
    assert splits["train"].num_rows == 10
    arrow.parent.mkdir(parents=True)
    built.rename(arrow)
    for path in arrow.glob("parquet-*.arrow"):
        path.rename(arrow / path.name.replace("parquet-", "cifar10-"))
    info = json.loads((arrow / "dataset_info.json").read_text())
    info |= {"builder_name": "cifar10", "dataset_name": "cifar10", "config_name": "plain_text"}
    (arrow / "dataset_info.json").write_text(json.dumps(info))
    done = run_offline("cifar10", tmp_path)
    assert done.stdout.strip() == "8", done.stderr


def test_the_probe_gives_up_in_time_and_sees_an_open_port(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_reachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def hang(*_arguments, **_options):
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)  # as a name lookup may
    start = time.monotonic()
    assert not hub_reachable(0.2)
    assert time.monotonic() - start < 10


def test_the_hub_is_asked_for_the_repository_and_configuration(tmp_path, monkeypatch):
    asked = []
    splits = {
        "train": datasets.Dataset.from_dict({"img": [picture((0, 0, 0))] * 4, "label": [0, 1] * 2}).cast_column(
            "label", datasets.ClassLabel(names=["cat", "dog"])
        )
    }
    splits["test"] = splits["train"]
    monkeypatch.setattr("minivim.data.hub.hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or splits)
    load_data("cifar10")
    load_data("frgfm/imagenette:160px")
    assert asked == [("uoft-cs/cifar10", None), ("frgfm/imagenette", "160px")]


def test_what_the_hub_complains_about_is_passed_on(monkeypatch):
    def gated(*names):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset.\nmore")

    monkeypatch.setattr("minivim.data.hub.hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(ValueError, match="data is 'imagenet', which could not be loaded from the hub: Dataset.*gated"):
        load_data("imagenet")


@pytest.fixture
def port(monkeypatch):
    """An open port of this machine; the hub's own address leads nowhere, and no proxy is set."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setattr(constants, "ENDPOINT", f"https://127.0.0.1:{closed.getsockname()[1]}")
    for name in ("https_proxy", "all_proxy", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["", "http://", "https://user:word@", "socks5://", "socks5h://"])
def test_a_proxy_is_asked_however_it_is_named(port, monkeypatch, name, scheme):
    assert not hub_reachable(0.5)
    monkeypatch.setenv(name, f"{scheme}127.0.0.1:{port}")
    assert hub_reachable()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert not hub_reachable(0.5)


def test_a_proxy_whose_port_is_no_number_is_refused_without_its_password(port, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:port")
    with pytest.raises(ValueError, match=r"^HTTPS_PROXY or ALL_PROXY is 'proxy:port'; its port must be a number"):
        hub_reachable()


def test_cifar100_has_its_fine_classes_unless_a_column_is_named(monkeypatch):
    columns = {"img": [picture((value, 0, 0)) for value in range(20)], "fine_label": [0, 1, 2, 3] * 5}
    rows = datasets.Dataset.from_dict(columns | {"coarse_label": [0, 0, 1, 1] * 5})
    rows = rows.cast_column("fine_label", datasets.ClassLabel(names=["a", "b", "c", "d"]))
    rows = rows.cast_column("coarse_label", datasets.ClassLabel(names=["x", "y"]))
    asked = []
    monkeypatch.setattr("minivim.data.hub.hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or {"train": rows})
    assert load_data("cifar100").classes == ("a", "b", "c", "d")
    assert load_data("cifar100", label_column="coarse_label").classes == ("x", "y")
    assert asked == [("uoft-cs/cifar100", None)] * 2
