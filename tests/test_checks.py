"""What every room says: sentences that a terminal can show, and notices that are given once."""

import warnings

import pytest

from minivim.checks import is_first_process, notify, printable


@pytest.mark.parametrize("rank, speaks", [(None, True), ("0", True), ("1", False), ("12", False)])
def test_of_several_processes_the_first_one_gives_a_notice(monkeypatch, rank, speaks):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() == speaks
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        notify("3 images are left out")
    assert [str(each.message) for each in said] == ["3 images are left out"] * speaks


@pytest.mark.parametrize(
    ("text", "kept", "shown"),
    [
        ("a\x1b[31m\n\ud800\u202e", "", r"a\x1b[31m\n\ud800\u202e"),
        ("a\tb\n\x07", "\n\t", "a\tb\n\\x07"),
        ("Größe 猫", "", "Größe 猫"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, kept, shown):
    assert printable(text, kept) == shown
