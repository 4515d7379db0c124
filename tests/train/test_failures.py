"""What befalls a run on real machines leaves no trace in its results."""

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")


def test_killed_stopped_and_on_a_full_disk_a_run_ends_as_one_left_alone():
    from tests.train import failures

    met = failures.main(count=4)
    assert met.total() == 4 and met["kill, 1"] == met["stop, 1"] == 1
    assert met["fill, 1"] + met["stop, 2"] == 1  # where nobody may mount a small disk
