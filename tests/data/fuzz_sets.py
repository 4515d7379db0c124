"""Loads image sets as people have them, each in a temporary folder: `python -m tests.data.fuzz_sets [WORD]`.

Every set must give exactly the images and labels that it says here, or be refused in one sentence; WORD chooses some.
"""

import datetime
import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from tests.data.odd_sets import (
    Case,
    columns_only,
    encoded,
    flat,
    grey,
    labels_only,
    made_by,
    picture,
    put,
    table,
    tables,
    tree,
    trees,
)  # fmt: skip

CUT, BOTH, THREE = (8, 2), (10, 10), (10, 10, 10)  # 10 images cut 80 to 20; a train and a test split; a third one
STRANGE = [
    "s*r", "data[1]", "a::b", "with space", "new\nline", "Übergröße", "100%41", "it's", '"quoted"', "{x}", "what?",
    "back\\slash", "-dash", "日本", "🐱", "\x1b[31mred", "x" * 200, os.fsdecode(b"caf\xe9"), "#1",
    "a;b|c&d", "$HOME", "~",
]  # fmt: skip


def also(*makers):
    """A `make` that runs several."""

    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


def within(name: str, maker):
    """A `make` whose set is a folder of that name, beside a decoy."""

    def make(folder: Path) -> Path:
        tree(folder / "sXr", ("ant", "bee"))
        (folder / name).mkdir()
        maker(folder / name)
        return folder / name

    return make


def link(name: str, target: str):
    return lambda folder: (folder / name).symlink_to(target)


def splits_of_folders():
    pairs = [
        "train test",
        "Train Test",
        "TRAIN TEST",
        "training testing",
        "Training Testing",
        "train val",
        "train valid",
    ]
    pairs += ["train validation", "train eval", "Train Dev", "TRAIN VAL"]
    yield from (Case(f"folders {pair}", made_by(trees, *pair.split()), BOTH) for pair in pairs)
    for three in ("train val test", "Training Valid Testing", "TRAIN DEV TEST"):
        yield Case(f"folders {three}", made_by(trees, *three.split()), THREE)
    for names in ("train Training test", "train val validation test", "train test Test", "Training TRAINING val"):
        yield Case(f"folders {names}", made_by(trees, *names.split()), "two names of one split")
    yield Case("folders val test", made_by(trees, "val", "test"), "none for training")
    yield Case("folder train", made_by(trees, "train"), "no test/ or val/")
    yield Case("folder test", made_by(trees, "test"), "none for training")
    yield Case("flat splits", made_by(tree, ("train", "test")), "no sub-folders")
    yield Case("a class called train", made_by(tree, ("bus", "train")), CUT, classes=("bus", "train"))
    unlabelled = also(made_by(trees, "train", "val"), lambda folder: flat(folder / "test"))
    yield Case("flat test", unlabelled, BOTH, says="3 images in 'test' are left out")
    unlabelled = also(made_by(trees, "train"), lambda folder: flat(folder / "test"))
    yield Case("flat test and no val", unlabelled, CUT, says="3 images in 'test' are left out")
    beside = also(made_by(trees, "train", "test"), lambda folder: flat(folder / "raw"))
    yield Case("a folder beside the splits", beside, BOTH, says="3 images in 'raw' are left out")
    yield Case("splits in the classes", made_by(tree, ("x/train", "y/train")), "splits inside its classes")
    other = also(lambda folder: tree(folder / "train"), lambda folder: tree(folder / "test", ("cat", "cow")))
    composed, apart = ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "dog"), ("cafe\N{COMBINING ACUTE ACCENT}", "dog")
    both = also(lambda folder: tree(folder / "train", composed), lambda folder: tree(folder / "test", apart))
    yield Case("classes composed and not", both, BOTH, classes=composed)
    yield Case("other classes in test", other, "other classes in its test images .*'cow', 'dog'")
    other = also(made_by(trees, "train", "test"), lambda folder: tree(folder / "val", ("cat",)))
    yield Case("a class less in val", other, "other classes in its val images .*'dog'")


def splits_of_tables():
    for names in (
        "train.parquet test.parquet", "train_0.parquet test_0.parquet", "TRAIN.parquet Test.parquet",
        "train-00000-of-00001.parquet test-00000-of-00001.parquet", "training_1.parquet dev_1.parquet",
        "data/train-0.parquet data/validation-0.parquet", "train/0000.parquet valid/0000.parquet",
        "default/train/0000.parquet default/test/0000.parquet", "my_train_set.parquet my_test_set.parquet",
        "train2019.PARQUET test2019.parquet",
    ):  # fmt: skip
        yield Case(f"parquet {names}", made_by(tables, *names.split()), BOTH)
    yield Case("parquet three", made_by(tables, "train.parquet", "val.parquet", "test.parquet"), THREE)
    yield Case("parquet train only", made_by(tables, "train.parquet"), CUT)
    yield Case("parquet shards", made_by(tables, "train-0.parquet", "train-1.parquet", "test.parquet"), (20, 10))
    yield Case("parquet val test", made_by(tables, "val.parquet", "test.parquet"), "none for training")
    yield Case("parquet no split", made_by(tables, "data.parquet"), "no training files")
    yield Case("parquet two names", made_by(tables, "train.parquet", "Train_1.parquet"), "two names of one split")
    yield Case("parquet two sets", made_by(tables, "a/train-0.parquet", "b/train-0.parquet"), "train files in 'a', 'b'")
    yield Case("parquet odd one", made_by(tables, "train.parquet", "more.parquet"), CUT, says="left out are 'more.parq")
    yield Case("parquet and images", also(made_by(tables, "train.parquet"), tree), "images and with parquet files")
    yield Case("parquet of metadata", also(made_by(tables, "metadata.parquet"), tree), CUT)
    yield Case("parquet hidden", also(made_by(tables, ".train.parquet", "._train.parquet"), tree), CUT)
    shards = also(made_by(tables, "train-0.parquet"), lambda folder: table(folder / "train-1.parquet", []))
    yield Case("parquet with a shard of no rows", shards, CUT)
    yield Case("parquet text", lambda folder: put(folder / "train.parquet", b"PAR1 nonsense"), "as parquet")
    yield Case("parquet empty file", lambda folder: put(folder / "train.parquet", b""), "as parquet")
    yield Case("parquet no rows", lambda folder: table(folder / "train.parquet", []), "(no rows|no training)")
    cut = also(made_by(tables, "train.parquet"), lambda folder: os.truncate(folder / "train.parquet", 300))
    yield Case("parquet cut short", cut, "as parquet")


def droppings():
    for name in (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".git", "lost+found", "$RECYCLE.BIN"):
        for place in ("", "cat"):
            into = also(tree, lambda folder, place=place, name=name: flat(folder / place / name))
            yield Case(f"folder {name} in {place or 'the root'}", into, CUT)
    for name in ("._0.png", "Thumbs.db", ".DS_Store", "desktop.ini", ".0.png"):
        for place in ("", "dog"):
            into = also(tree, lambda folder, place=place, name=name: put(folder / place / name, b"\0\5\x16\7"))
            yield Case(f"file {name} in {place or 'the root'}", into, CUT)
    for target in (".", "..", "../..", "cat", "loop"):
        yield Case(f"link to {target}", also(tree, link("loop", target)), CUT, says="links" if target == "cat" else "")
        nowhere = "1 files that are no images" if target in ("cat", "loop") else ""
        yield Case(f"link to {target} in a class", also(tree, link("cat/loop", target)), CUT, says=nowhere)
    yield Case("link to an image", also(tree, link("cat/9.png", "0.png")), CUT, says="left out are 1 links")
    yield Case("link to another class", also(tree, link("dog/9.png", "../cat/0.png")), CUT, says="1 links")
    yield Case("link to nowhere", also(tree, link("dog/9.png", "nowhere.png")), r"9\.png' could not be read")
    linked = also(made_by(trees, ".real"), link("cat", ".real/cat"), link("dog", ".real/dog"))
    yield Case("classes that are links", linked, CUT)
    yield Case(
        "a pipe", also(tree, lambda folder: os.mkfifo(folder / "cat" / "9.png")), CUT, says="1 files that are no"
    )


def left_out():
    for name in ("notes.txt", "0.heic", "0.svg", "0", "0.png.part"):
        one = also(tree, lambda folder, name=name: put(folder / "cat" / name, b"x"))
        yield Case(f"{name} in a class", one, CUT, says="left out are 1 files that are no images")
        all_of_it = also(made_by(tree, ("cat",)), lambda folder, name=name: put(folder / "dog" / name, b"x"))
        yield Case(f"a class of {name}", all_of_it, "'dog' holds no image that can be read")
    yield Case("an empty class", also(tree, lambda folder: (folder / "eel").mkdir()), "'eel' holds no image")
    yield Case("a loose image", also(tree, flat), CUT, says="3 images outside the sub-folders")
    yield Case("a class named like an image", made_by(tree, ("cat.png", "dog")), CUT, classes=("cat.png", "dog"))
    yield Case("a README", also(tree, lambda folder: put(folder / "README.md", b"x")), CUT)
    yield Case("nothing", lambda folder: None, "holds no images")
    yield Case("images only", flat, "holds no images")
    yield Case("one class", made_by(tree, ("cat",)), "one class only")
    yield Case("a JPEG called PNG", also(tree, lambda f: put(f / "cat" / "0.png", encoded("cat", "jpeg"))), CUT)
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").close()
    bomb = bytearray(encoded())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    for name, content in {
        "text": b"hello", "nothing": b"", "zip": archive.getvalue(), "half": encoded()[:45], "bomb": bytes(bomb),
        "html": b"<html>404", "header": encoded()[:20], "zeros": bytes(500),
    }.items():  # fmt: skip
        damaged = also(tree, lambda folder, content=content: put(folder / "dog" / "3.png", content))
        yield Case(f"{name} called PNG", damaged, r"image '.*dog/3\.png' could not be read")
    yield Case("twice the same image", lambda folder: trees(folder, "train", "test") or put(
        folder / "test" / "cat" / "0.png", (folder / "train" / "cat" / "1.png").read_bytes()
    ), BOTH, says="1 of 10 test images are also training images")  # fmt: skip


def names():
    for name in STRANGE:
        yield Case(f"folder {name!r}", within(name, tree), CUT)
        yield Case(
            f"file in {name!r}", within(name, lambda f: tree(f) or put(f / "cat" / "1.png", b"x")), "could not be"
        )
    for name in STRANGE[:6] + STRANGE[17:18]:
        yield Case(f"parquet in {name!r}", within(name, made_by(tables, "train.parquet", "test.parquet")), BOTH)
    shown = tuple(sorted("caf\\xe9" if name == STRANGE[17] else name for name in STRANGE))
    yield Case("classes", made_by(tree, STRANGE), (88, 22), classes=shown)
    lists = {"classes": lambda folder: folder / "odd", "img_size": 8}
    yield Case(
        "unknown class", also(tree, lambda f: put(f / "odd", b"\x1b[31m\ncat\n")), r"names '\\x1b\[31m'", options=lists
    )


def labels():
    good = {
        "minus one and one": [-1, 1], "from one": [1, 2], "far apart": [-7, 10**12], "strings": ["a", "b"],
        "whole floats": [0.0, 1.0], "truth values": [False, True], "digits in strings": ["01", "1"],
    }  # fmt: skip
    for name, values in good.items():
        classes = tuple(str(int(value) if isinstance(value, float) else value) for value in values)
        yield Case(f"labels {name}", made_by(labels_only, values * 5, values * 5), BOTH, classes=classes)
    large = pa.array([0, 2**64 - 1] * 5, pa.uint64())
    yield Case("labels uint64", made_by(labels_only, large), CUT, classes=("0", str(2**64 - 1)))
    coded = pa.array(["a", "b"] * 5).dictionary_encode()
    yield Case("labels coded", made_by(labels_only, coded), CUT, classes=("a", "b"))
    pets = ("cat", "dog")
    yield Case("labels named", made_by(labels_only, [0, 1] * 5, [1, 0] * 5, pets), BOTH, coloured=False)
    for name, values, sentence in (
        ("fractions", [0.5, 1.0] * 5, "holds '0.5'"), ("lists", [[0], [1]] * 5, "one class a row"),
        ("all null", pa.array([None] * 10, pa.int64()), "10 of 10 train rows have no label"),
        ("some null", [0, None] * 5, "5 of 10 train rows"), ("nan", [0.0, 1.0, float("nan")] * 4, "4 of 12 train"),
        ("no strings", ["a", "b", ""] * 4, "4 of 12 train"),
        ("dates", [datetime.date(2020, 1, 1)] * 10, "whole numbers"),
    ):  # fmt: skip
        yield Case(f"labels {name}", made_by(labels_only, values), sentence)
    for name, values, sentence in (
        ("too large", [0, 2] * 5, "holds '2' in its train rows"), ("too small", [0, -2] * 5, "holds '-2' in its train"),
        ("named without", [0, 1, -1] * 4, "4 of 12 train rows have no label"), ("named null", [0, 1, None], "1 of 3"),
    ):  # fmt: skip
        yield Case(f"labels {name}", made_by(labels_only, values, None, pets), sentence)
    gap = [0, 1] * 100 + [None]
    yield Case("labels with a gap", made_by(labels_only, gap), (160, 40), "1 of 201 train rows", ("0", "1"))
    largest = [0, 1] * 99 + [None] * 2
    yield Case("labels with as large a gap as may be", made_by(labels_only, largest), (158, 40), "2 of 200", ("0", "1"))
    for name, test in (("minus one", [-1] * 10), ("null", pa.array([None] * 10, pa.int64()))):
        yield Case(f"test labels {name}", made_by(labels_only, [3, 5] * 5, test), CUT, "10 test images are", ("3", "5"))
        yield Case(f"named test labels {name}", made_by(labels_only, [0, 1] * 5, test, pets), CUT, "10 test images are")
    yield Case("minus one among others in test", made_by(labels_only, [0, 1] * 5, [0, -1] * 5), "'-1' in its test rows")
    yield Case("one null in test", made_by(labels_only, [0, 1] * 5, [0, None] * 5), "5 of 10 test rows have no label")
    yield Case("a new class in test", made_by(labels_only, [0, 1] * 5, [0, 2] * 5), "holds '2' in its test rows")


def columns():
    def two(folder: Path, **more) -> None:
        table(folder / "train.parquet", pictures=("photo", "mask"), **more)

    yield Case("two image columns", two, "'photo', 'mask'; image_column .--image-column. must name one")
    yield Case("one is named", two, CUT, options={"image_column": "photo"})
    yield Case("none of that name", two, "columns 'photo', 'mask', 'label'", options={"image_column": "Photo"})
    named = datasets.ClassLabel(names=["cat", "dog"])
    groups = {"image": datasets.Image(), "label": named, "coarse": named}
    both = made_by(lambda folder: table(folder / "train.parquet", [0, 1] * 5, groups, coarse=[1, 0] * 5))
    yield Case("two label columns", both, "'label', 'coarse'; label_column .--label-column. must name one")
    yield Case("a label column", both, CUT, options={"label_column": "label"})
    yield Case("no label column of that name", both, "label_column is 'x'", options={"label_column": "x"})
    lone = {"image": datasets.Image(), "Label": datasets.Value("int64"), "age": datasets.Value("int64")}
    yield Case(
        "Label and another number",
        made_by(columns_only, lone, Label=[0, 1] * 5, age=[3, 4] * 5),
        CUT,
        classes=("0", "1"),
    )
    lone = {"image": datasets.Image(), "good": datasets.Value("bool"), "text": datasets.Value("string")}
    yield Case(
        "truth values under any name",
        made_by(columns_only, lone, good=[False, True] * 5, text=["x"] * 10),
        CUT,
        classes=("False", "True"),
    )
    other = also(made_by(tables, "train.parquet"), lambda folder: table(folder / "test.parquet", pictures=("photo",)))
    yield Case("an image column of another name in test", other, "test rows have no column 'image'")
    raw = pa.array([encoded(label) for label in ("cat", "dog") * 5])
    bare = made_by(lambda folder: table(folder / "train.parquet", pictures=(), jpg=raw))
    yield Case("raw bytes", bare, CUT)
    yield Case("no images", lambda folder: table(folder / "train.parquet", pictures=()), "an image column")
    missing = made_by(lambda f: table(f / "train.parquet", pictures=(), jpg=pa.array([None] * 10, pa.binary())))
    yield Case("null images", missing, "image 'row 0 of train' could not be read")
    yield Case("columns of a folder", tree, "no parquet files", options={"label_column": "label"})


def classes():
    for count, expect in (
        (2, CUT),
        ("2", CUT),
        (0, "classes is 0"),
        (1, "classes is 1"),
        (4, "from 2 to 3"),
        ("-1", "-1"),
        (10**30, "from 2 to 3"),
    ):
        yield Case(f"classes {count!r}", made_by(tree, ("cat", "dog", "eel")), expect, options={"classes": count})
    yield Case("classes of 5,000 digits", tree, "a number or a text file", options={"classes": "9" * 5000})
    for text, expect in (
        (b"cat\ndog\n", CUT), (b"\xef\xbb\xbfcat\r\n\r\n  dog  ", CUT), (b"0\n1\n", CUT),
        (b"cat\ncow\n", "names 'cow'"),
        (b"cat\ncat\n", "each of them once"), (b"cat\n", "at least two"), (b"", "at least two"),
        (b"\xff\xfe", "not UTF-8"),
    ):  # fmt: skip
        listed = also(made_by(tree, ("cat", "dog", "eel")), lambda folder, text=text: put(folder / "list", text))
        yield Case(f"classes {text!r}", listed, expect, options={"classes": lambda folder: folder / "list"})
    order = also(tree, lambda folder: put(folder / "list", b"dog\ncat\n"))
    listed = {"classes": lambda folder: folder / "list"}
    yield Case("classes in order", order, CUT, classes=("dog", "cat"), options=listed)
    yield Case("classes of no file", tree, "could not be read .No such", options={"classes": "nowhere.txt"})
    for share, expect in (
        (0.25, (6, 2, 2)),
        (0.001, (7, 2, 1)),
        (0.9, (2, 2, 6)),
        (-0.1, "val_share"),
        (1.0, "val_share"),
    ):
        yield Case(f"val_share {share}", tree, expect, options={"val_share": share})
    yield Case("val_share nan", tree, "val_share is nan", options={"val_share": float("nan")})
    yield Case("val_share and val", made_by(trees, "train", "val", "test"), THREE, options={"val_share": 0.5})
    yield Case("val_share and val alone", made_by(trees, "train", "val"), (6, 10, 4), options={"val_share": 0.4})
    single = made_by(trees, "train", "test")
    one = also(single, lambda f: [os.remove(f / "train" / c / f"{n}.png") for c in ("cat", "dog") for n in range(1, 5)])
    yield Case("val_share of one image", one, "every class has one image only", options={"val_share": 0.5})


def formats():
    def saved(mode: str, kind: str):
        def make(folder: Path) -> None:
            for label in ("cat", "dog"):
                for number in range(5):
                    (folder / label).mkdir(exist_ok=True)
                    picture(label).convert(mode).save(folder / label / f"{number}.{kind}")

        return make

    for mode, kind in (("RGB", "bmp"), ("RGB", "webp"), ("RGB", "jpg"), ("RGB", "ppm"), ("RGB", "gif"), ("RGB", "JPEG"),
                       ("RGBA", "png"), ("P", "png"), ("CMYK", "tif"), ("RGB", "tga"), ("RGB", "jp2")):  # fmt: skip
        coloured = kind != "webp" and kind != "gif" and mode != "P"
        yield Case(f"{mode} {kind}", saved(mode, kind), CUT, coloured=coloured)
    for name, value, kind in (
        ("float to 1", 1.0, np.float32), ("float to 255", 200.0, np.float32), ("int32", 60000, np.int32),
        ("12 bits", 4000, np.uint16), ("16 bits", 65535, np.uint16), ("large int32", 10**6, np.int32),
    ):  # fmt: skip
        yield Case(name, made_by(grey, value, kind), CUT, says="also training images", coloured=False)
    yield Case("nan", made_by(grey, float("nan"), np.float32), "not finite")
    yield Case("negative", made_by(grey, -50.0, np.float32), "no brightness is negative")
    long = also(tree, lambda folder: put(folder / "cat" / "0.png", encoded("cat", size=(65000, 1))))
    yield Case("65000x1", long, CUT, options={"img_size": 8})
    yield Case("65000x1 and no size", long, "images differ in size")
    yield Case(
        "1x1", also(tree, lambda f: put(f / "cat" / "0.png", encoded("cat", size=(1, 1)))), CUT, options={"img_size": 8}
    )
    for size in (0, -3, 10**20):
        yield Case(f"img_size {size}", tree, "img_size is", options={"img_size": size})
    yield Case("a source of nowhere", lambda folder: folder / "nowhere", "data is '.*nowhere'; it must be one of")


def cases() -> list[Case]:
    groups = (splits_of_folders, splits_of_tables, droppings, left_out, names, labels, columns, classes, formats)
    return [case for group in groups for case in group()]


def run(chosen: list[Case]) -> list[str]:
    """The faults of the chosen sets, one line each."""
    datasets.disable_progress_bars()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        for number, case in enumerate(chosen):
            if fault := case.fault(Path(folder, str(number))):
                faults.append(f"{case.name}: {fault}")
    return faults


if __name__ == "__main__":
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [case for case in cases() if word in case.name]
    faults = run(chosen)
    print(*faults, f"{len(chosen)} sets, {len(faults)} faults", sep="\n")
    sys.exit(bool(faults))
