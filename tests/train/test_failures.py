"""What befalls a run on real machines leaves no trace in its results."""

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")


def test_killed_stopped_and_on_a_full_disk_a_run_ends_as_one_left_alone():
    from tests.train import failures

    met = failures.main(count=4)
    assert met.total() == 4 and met["kill, 1"] == met["stop, 1"] == 1
    assert met["fill, 1"] + met["stop, 2"] == 1  # where nobody may mount a small disk


@pytest.mark.parametrize(
    ("kind", "codes", "finished", "may_be"),
    [
        ("kill", [-9], False, True),
        ("kill", [-9, 2], False, True),  # the other process misses this one
        ("stop", [143, 143], False, True),
        ("stop", [-15], True, True),  # while the curves are drawn, when all is saved
        ("stop", [-15], False, False),  # it was not heard, and what was done since the last save is lost
        ("kill", [-15], True, False),
        ("kill", [2, 0], False, False),
        ("fill", [28, 1], False, False),
    ],
)
def test_a_disturbed_run_ends_with_a_code_that_says_how(kind, codes, finished, may_be):
    from tests.train import failures

    if may_be:
        failures.check_codes(kind, codes, finished)
    else:
        with pytest.raises(AssertionError):
            failures.check_codes(kind, codes, finished)
