"""Images in two parts of a set are counted, in memory and not, and said once."""

import io
import warnings

import numpy as np
import pytest

from minivim.data import duplicates, load_data
from minivim.data import sources as sources_module
from minivim.data.parts import Rows, spaced
from minivim.data.tables import ImageColumn

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
from tests.data.odd_sets import encoded, flat, put, trees  # noqa: E402  # the sets are made with the datasets library


@pytest.fixture(autouse=True)
def not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def notices(source, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_data(source, img_size=8, **options)
    return [str(each.message).partition(": ")[2] for each in said]


def sentence(count: int, looked: int, part: str = "test") -> str:
    return f"of {looked} {part} images that were looked for, at least {count} are also training images, byte for byte"


def test_files_that_are_in_two_parts_are_counted_under_any_name(tmp_path):
    folder = tmp_path / "set"
    trees(folder, "train", "val", "test")
    assert notices(folder) == []
    for part, count in (("test", 3), ("val", 1)):
        for number in range(count):  # as other classes, too
            put(folder / part / "dog" / f"copy{number}.png", (folder / "train" / "cat" / f"{number}.png").read_bytes())
    (folder / "test" / "cat" / "linked.png").symlink_to(folder / "train" / "dog" / "0.png")
    put(folder / "train" / "cat" / "again.png", (folder / "train" / "cat" / "0.png").read_bytes())
    assert sorted(notices(folder)) == [sentence(1, 11, "validation"), sentence(4, 14)]


def test_images_of_one_size_with_the_same_middle_are_no_copies(tmp_path):
    """Pixels are compared as a whole in the end; a file that is gone or empty is a copy of none."""
    folder, rest = tmp_path / "set", bytes(3 * duplicates.PIECE)
    for number, part in enumerate(("train", "test")):
        for label in ("cat", "dog"):
            put(folder / part / label / "0.png", encoded(label) + rest + bytes([number]))
            put(folder / part / label / "empty.png", b"")
            (folder / part / label / "gone.png").symlink_to("nowhere")
    assert notices(folder) == []
    put(folder / "test" / "cat" / "0.png", (folder / "train" / "cat" / "0.png").read_bytes())
    assert notices(folder) == [sentence(1, 6)]


def records(numbers, path=None) -> list[dict]:
    """Images that differ by their number, as a table has them."""
    from PIL import Image

    made = []
    for number in numbers:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "bmp")  # all of one size
        made.append({"bytes": buffer.getvalue(), "path": path})
    return made


def test_rows_of_tables_that_are_in_two_parts_are_counted(tmp_path):
    for name, column in (("records", lambda rows: rows), ("plain", lambda rows: [row["bytes"] for row in rows])):
        folder = tmp_path / name
        folder.mkdir()
        for part, numbers in (("train", range(20)), ("test", [100, 3, 101, 5])):
            columns = {"image": column(records(numbers)), "label": [0, 1] * (len(numbers) // 2)}
            pq.write_table(pa.table(columns), folder / f"{part}.parquet", row_group_size=3)
        assert notices(folder) == [sentence(2, 4)]


def test_what_is_cut_off_for_validation_is_no_training_image_any_more(tmp_path):
    for part, numbers in (("train", range(20)), ("test", range(20))):
        columns = {"image": records(numbers), "label": [0, 1] * 10}
        pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
    assert notices(tmp_path, val_share=0.4) == [sentence(12, 20)]


def test_a_table_of_paths_is_looked_up_on_the_disk(tmp_path):
    flat(tmp_path / "files", 4)
    paths = [tmp_path / "files" / f"{number}.png" for number in range(4)]
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(path)} for path in paths]})
    column = ImageColumn(rows, "image", "train")
    assert duplicates.encoded(column, 2).tobytes() == paths[2].read_bytes()
    assert duplicates.sizes(Rows(column, [3, 0])).tolist() == [paths[3].stat().st_size, paths[0].stat().st_size]
    nothing = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": "nowhere"}, None]})
    assert duplicates.sizes(ImageColumn(nothing, "image", "train")).tolist() == [0, 0]


def test_what_is_read_of_a_large_set_is_bounded(tmp_path, monkeypatch):
    """A hundred equal sizes: four files of the other part are looked for, among ten."""
    for part, numbers in (("train", range(100)), ("test", range(100))):
        columns = {"image": records(numbers), "label": [0, 1] * 50}
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "set" / f"{part}.parquet")
    monkeypatch.setattr(duplicates, "LOOKED_FOR", 4)
    monkeypatch.setattr(duplicates, "LOOKED_AT", 10)
    original, read = duplicates._mark, []
    monkeypatch.setattr(duplicates, "_mark", lambda data: read.append(len(data)) or original(data))
    assert notices(tmp_path / "set") == [sentence(2, 4)]  # 0, 25, 50, 75 among 0, 10, ... 90
    assert len(read) == 4 + 10


def test_files_of_one_size_are_told_apart_by_their_middle_before_they_are_read(tmp_path, monkeypatch):
    for part, first in (("train", 0), ("test", 12)):  # 12 to 19 are in both
        for number, record in enumerate(records(range(first, first + 20))):
            put(tmp_path / part / ("cat", "dog")[number % 2] / f"{number}.bmp", record["bytes"])
    original, opened = duplicates.encoded, []
    monkeypatch.setattr(duplicates, "encoded", lambda items, row: opened.append(row) or original(items, row))
    assert notices(tmp_path) == [sentence(8, 20)]
    assert len(opened) == 20 + 20 + 8


@pytest.mark.parametrize("count, most", [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 64), (64, 1)])
def test_some_rows_are_evenly_spaced_and_no_more_than_asked_for(count, most):
    rows = list(spaced(count, most))
    assert len(rows) <= most and len(rows) >= min(count, most) / 2
    gaps = set(np.diff(rows).tolist())
    assert rows[:1] == [0][:count] and len(gaps) <= 1
    assert count == 0 or rows[-1] + (gaps or {count}).pop() >= count


@pytest.mark.parametrize("in_memory", [False, True])
def test_only_the_first_process_looks(tmp_path, monkeypatch, in_memory):
    folder = tmp_path / "set"
    trees(folder, "train", "test")
    put(folder / "test" / "cat" / "0.png", (folder / "train" / "cat" / "1.png").read_bytes())
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", 2**30 * in_memory)
    assert len(notices(folder)) == 1
    monkeypatch.setenv("RANK", "1")
    for name in ("_mark", "_digest"):
        monkeypatch.setattr(duplicates, name, lambda *args: pytest.fail("it was looked for"))
    assert notices(folder) == []
