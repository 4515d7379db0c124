"""Small trainings that differ in one thing, with several seeds each, and the file in which their results stand."""

import datetime
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from minivim.bench.measure import device_name


def measure(
    out: Path, command: str, settings: Mapping, names: Iterable[str], seeds: int, record: Callable[[str, int], dict]
) -> None:
    """Run what is missing in the file `out`, seed by seed, and write after each run.

    `record(name, seed)` trains once and returns what is kept, with its name and seed.
    """
    runs = json.loads(out.read_text())["runs"] if out.exists() else []
    done = {(each["name"], each["seed"]) for each in runs}
    for name, seed in [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in done]:
        runs.append(record(name, seed))
        page = {
            "machine": f"{device_name('cpu')}, one thread",
            "command": command,
            "date": datetime.date.today().isoformat(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "settings": settings,
            "runs": runs,
        }
        out.write_text(json.dumps(page, indent=1) + "\n")
        print(runs[-1], flush=True)
