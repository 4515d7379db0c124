"""Folders and files as people have them: every odd set of `fuzz_sets`, replaced files, folders that cannot be read."""

import os

import pytest

from minivim.data import load_data

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
from tests.data.fuzz_sets import cases  # noqa: E402  # the sets are made with the datasets library
from tests.data.odd_sets import labels_only, tree  # noqa: E402  # as above

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("case", cases(), ids=lambda case: ascii(case.name))
def test_an_odd_set_loads_exactly_or_is_refused_in_one_sentence(case, tmp_path):
    assert case.fault(tmp_path / "set") is None


def test_a_file_replaced_under_its_name_and_time_is_read_anew(tmp_path):
    labels_only(tmp_path, [0, 1] * 5)
    path = tmp_path / "train.parquet"
    before = path.stat()
    assert load_data(tmp_path).classes == ("0", "1")
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(1, "label", pa.array([2, 3] * 5)), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert load_data(tmp_path).classes == ("2", "3")


def test_a_table_is_read_from_the_cache_while_it_stays_the_same(tmp_path, monkeypatch):
    labels_only(tmp_path, [0, 1] * 5)
    parquet = pytest.importorskip("datasets.packaged_modules.parquet.parquet").Parquet
    made = []
    generate = parquet._generate_tables
    monkeypatch.setattr(parquet, "_generate_tables", lambda *a, **o: made.append(1) or generate(*a, **o))
    assert load_data(tmp_path).classes == load_data(tmp_path).classes
    assert len(made) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    tree(tmp_path)
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"^folder '.*dog' could not be read: Permission denied$"):
        load_data(tmp_path)


def test_a_linked_folder_of_links_is_entered_once(tmp_path):
    tree(tmp_path)
    for number in range(12):  # each leads to all others: without the rule, 12! ways
        (tmp_path / "dog" / f"round{number}").symlink_to(tmp_path / "dog")
    assert load_data(tmp_path).train_labels.bincount().tolist() == [4, 4]
