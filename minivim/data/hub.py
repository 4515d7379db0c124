"""Sets on the Hugging Face hub, or in its cache where the hub cannot be reached."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from minivim.checks import notify
from minivim.data.notices import quoted, quoted_list, reason_of
from minivim.data.parts import Part, by_part, check_has_training
from minivim.data.tables import Columns, read_splits
from minivim.extras import require

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "imagenet": "ILSVRC/imagenet-1k"}
LABEL_COLUMNS = {"cifar100": "fine_label"}  # beside coarse_label, its 20 groups of classes
PROBE_SECONDS = 2.0  # with the imports the answer comes within 5 s, however the network drops packets
PORTS = {"http": 80, "https": 443}  # every other scheme of a proxy is one of SOCKS
SOCKS_PORT = 1080


def read_hub(name: str, columns: Columns) -> tuple[dict[str, Part], list[str]]:
    """The parts and the classes of a set on the hub.

    Raises ConnectionError where there is neither a connection nor a copy in the cache, ValueError for what the hub
    refuses and for a set that cannot be used.
    """
    splits = _splits(name)
    parts = by_part(name, splits)
    check_has_training(name, parts or dict.fromkeys(splits, ""))
    if odd := [split for split in splits if split not in parts.values()]:
        notify(f"data is {quoted(name)}: its splits {quoted_list(odd)} are left out, only one of each kind is used")
    columns = columns._replace(label=columns.label or LABEL_COLUMNS.get(name))
    return read_splits(name, {part: splits[split] for part, split in parts.items()}, columns)


def _splits(name: str) -> Mapping:
    """What the datasets library loads: {split: Dataset}."""
    repository, _, config = HUB_NAMES.get(name, name).partition(":")
    reachable = hub_reachable()
    datasets = require("datasets", "train")
    try:
        with _offline(not reachable):
            return datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        if not reachable:
            raise ConnectionError(
                f"data is {quoted(name)}, which is no folder here, and the hub cannot be reached nor has its cache "
                f"{quoted(repository)[1:-1]}; it must be a folder, digits or shapes until there is a connection"
            ) from error
        raise ValueError(
            f"data is {quoted(name)}, which could not be loaded from the hub: {reason_of(error)}"
        ) from error


def hub_reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Whether a connection to the hub (or to the proxy in the environment) opens within `seconds`."""
    constants = require("huggingface_hub.constants", "train")
    if constants.HF_HUB_OFFLINE:
        return False
    address = _first_stop(constants.ENDPOINT)
    opened = threading.Event()

    def probe() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            opened.set()
        except OSError:
            pass

    # In a thread, because the time limit of a connection does not cover the name lookup.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return opened.is_set()


def _first_stop(endpoint: str) -> tuple[str | None, int]:
    """Host and port that a request to the hub goes to first: its own, or those of the proxy.

    Raises ValueError for a proxy whose address cannot be read.
    """
    hub = urlparse(endpoint)
    proxies = getproxies()  # whatever the case of HTTPS_PROXY, ALL_PROXY and NO_PROXY
    proxy = None if proxy_bypass(hub.hostname or "") else proxies.get(hub.scheme) or proxies.get("all")
    address = urlparse(proxy if "://" in proxy else f"http://{proxy}") if proxy else hub
    try:
        return address.hostname, address.port or PORTS.get(address.scheme, SOCKS_PORT)
    except ValueError as error:
        host = quoted(address.netloc.rpartition("@")[2])  # without the password
        raise ValueError(f"HTTPS_PROXY or ALL_PROXY is {host}; its port must be a number from 0 to 65535") from error


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """The libraries' offline mode, which reads the cache at once instead of retrying for 23 s."""
    modules = [require("datasets", "train").config, require("huggingface_hub.constants", "train")] if on else []
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
