"""What every test runs under: fixed seeds, no network, Triton's interpreter without a GPU, shapes checked."""

import os
import random
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never waits for the network; whoever wants it sets 0
os.environ.setdefault("MPLBACKEND", "Agg")  # figures are drawn to files, also where there is no display
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, so before any kernel module

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers already share out the cores; more threads would fight over them

# The modules are named one by one because numba and triton read the source of minivim.kernels:
# their functions must reach them unwrapped.
modules = sorted(path.stem for path in (ROOT / "minivim").iterdir() if path.suffix == ".py" or path.is_dir())
if find_spec("beartype"):
    jaxtyping.install_import_hook([f"minivim.{name}" for name in modules], "beartype.beartype")

hypothesis.settings.register_profile(
    "minivim",
    derandomize=True,  # the same examples in every run
    deadline=None,  # no test depends on the machine's speed
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,  # as above
        hypothesis.HealthCheck.function_scoped_fixture,  # `seed` and `unchecked` hold for all examples
    ],
)
hypothesis.settings.load_profile("minivim")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def unchecked():
    """Switch the run-time shape checks off, as they are for a user.

    For tests of the package's own error messages (the checks would raise first, and hide a missing message)
    and of torch.compile and torch.export (which cannot trace the checks).
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def small_data(monkeypatch):
    """160 training and 40 test images, given to `minivim.train` whatever it asks for."""
    from tests.train.small_runs import small_bundle

    data = small_bundle()
    monkeypatch.setattr("minivim.train.loop.load_data", lambda *args, **options: data)
    return data
