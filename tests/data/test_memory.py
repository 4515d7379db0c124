"""A folder with images of 65,000 x 1 pixels costs little more memory than one without, in every command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train.small_runs import striped_folder

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tyro")
resource = pytest.importorskip("resource")

LONG = {"wide.png": (65000, 1), "wide.jpg": (65000, 1), "tall.png": (1, 65000), "tall.jpg": (1, 65000)}
ALLOWED = 2**20  # KiB
# Both folders in one process, the plain one first: what the second adds to the peak is what its long images cost.
WORK = """
import resource, sys
from minivim import cli
from minivim.data import sources
room, crop, out, *folders = sys.argv[1:]
sources.IN_MEMORY_BYTES = int(room)
settings = "--model vim_nano_patch2_8 --patch-size 32 --img-size 224 --depth 1 --embed-dim 16 --epochs 1 --batch-size 8"
settings += " --threads 1 --no-progress --workers 2 --crop-scale " + crop
for number, folder in enumerate(folders):
    run = f"{out}/{number}"
    assert cli.main(["train", "--data", folder, "--out", run, *settings.split()]) == 0
    assert cli.main(["eval", f"{run}/best.safetensors", "--data", folder, "--workers", "2"]) == 0
    pictures = [f"{folder}/rows/{name}" for name in ("wide.png", "wide.jpg", "tall.png", "tall.jpg")]
    assert cli.main(["predict", f"{run}/best.safetensors", *pictures]) == 0
    print("peak", *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def peaks(*arguments: object) -> list[list[int]]:
    """KiB of the process and of its largest worker, after each folder."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [list(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("peak")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Stripes with four files more in each class: of 64 pixels a side, or as long as can be."""
    place, noise = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    found = []
    for name in ("plain", "long"):
        folder = striped_folder(place / name, 40, 160)  # so large that several threads decode
        for label in ("rows", "columns"):
            for file, size in LONG.items():
                width, height = size if name == "long" else (64, 64)
                pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / label / file)
        found.append(folder)
    return found


@pytest.mark.parametrize("room, crop", [(2**32, "1"), (0, "0.08")])
def test_very_long_images_cost_less_than_a_gibibyte(folders, tmp_path, room, crop):
    plain, long = peaks(room, crop, tmp_path, *folders)
    print(f"plain {plain}, long {long} KiB")
    assert all(after - before < ALLOWED for before, after in zip(plain, long, strict=True))
