"""A trained checkpoint at work: scores, predictions, and what is refused."""

import math
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minivim import VimConfig, VisionMamba, cli, create_model, to_official
from minivim.data.augment import normalise
from minivim.models import checkpoints
from minivim.models.export import metadata
from minivim.preparation import IMAGENET_MEAN, IMAGENET_STD
from minivim.train import train
from minivim.train.prediction import evaluate, predict, score
from tests.train.small_runs import small

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def test_predict_names_what_is_in_image_files(small_data, tmp_path):
    result = train(small(tmp_path, lr=1e-2, ema=0.9))
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(small_data.test_images[index].permute(1, 2, 0).numpy()).save(paths[-1])
    answers = predict(result.out / "best.safetensors", paths)
    assert [answer[0][0] for answer in answers] == ["rows", "columns"] * 2
    for answer in answers:
        assert len(answer) == 2 and answer[0][1] >= answer[1][1]
        assert sum(probability for _, probability in answer) == pytest.approx(1, abs=1e-5)


def test_checkpoints_and_images_that_do_not_fit_are_refused(small_data, tmp_path):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1)
    checkpoints.save(model, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="must be written by minivim train"):
        evaluate(tmp_path / "bare.safetensors", small_data)
    with pytest.raises(ValueError, match="must be an existing file"):
        evaluate(tmp_path / "missing.safetensors", small_data)
    extra = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3}
    model.reset_classifier(2)
    checkpoints.save(model, tmp_path / "good.safetensors", extra)
    with pytest.raises(ValueError, match="data has the classes .*'rows'.*; they must be the model's: .*'a'"):
        evaluate(tmp_path / "good.safetensors", small_data)
    with pytest.raises(ValueError, match="image is .*nothing.png'; it must be an existing file"):
        predict(tmp_path / "good.safetensors", [tmp_path / "nothing.png"])
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match="image .*text.png' could not be read"):
        predict(tmp_path / "good.safetensors", [tmp_path / "text.png"])
    with pytest.raises(ValueError, match="images is empty"):
        predict(tmp_path / "good.safetensors", [])


def test_images_are_normalised_as_the_checkpoint_says_and_not_as_their_own_set_would(small_data, tmp_path):
    stored = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    assert stored["mean"] != pytest.approx(list(small_data.mean), abs=0.05)
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, num_classes=2).eval()
    checkpoints.save(model, tmp_path / "a.safetensors", {"classes": ["rows", "columns"], **stored})
    with torch.no_grad():
        logits = model(normalise(small_data.test_images, tuple(stored["mean"]), tuple(stored["std"])))
        other = model(normalise(small_data.test_images, small_data.mean, small_data.std))
    expected, wrong = (F.cross_entropy(each, small_data.test_labels).item() for each in (logits, other))
    found = evaluate(tmp_path / "a.safetensors", small_data)["loss"]
    assert found == pytest.approx(expected, rel=1e-5) != pytest.approx(wrong, rel=1e-5)
    Image.fromarray(small_data.test_images[0].permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    [answers] = predict(tmp_path / "a.safetensors", [tmp_path / "0.png"])
    assert dict(answers)["rows"] == pytest.approx(logits[0].softmax(0)[0].item(), rel=1e-5)
    assert dict(answers)["rows"] != pytest.approx(other[0].softmax(0)[0].item(), rel=1e-5)


def test_a_score_sums_over_the_images_and_counts_each_class_by_itself(small_data, tmp_path):
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float32)
    labels = torch.tensor([0, 0, 0, 1])
    expected = [math.log(1 + math.exp(-x)) for x in (2.0, -1.0, 3.0, 4.0)]
    assert score(logits, labels).tolist() == pytest.approx([sum(expected), 3, 4])
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, num_classes=3).eval()
    checkpoints.save(model, tmp_path / "a.safetensors", {"classes": list("abc"), "mean": [0.5] * 3, "std": [0.5] * 3})
    data = replace(small_data, classes=("a", "b", "c"))
    found = evaluate(tmp_path / "a.safetensors", data)
    with torch.no_grad():
        answers = model(normalise(data.test_images, (0.5,) * 3, (0.5,) * 3)).argmax(1)
    right = (answers == data.test_labels).double()
    per_class = {name: right[data.test_labels == label].mean().item() for label, name in enumerate("ab")}
    assert found["per_class"] == per_class and found["accuracy"] == right.mean().item()  # c has no images


def framed_folder(folder):
    """Pictures of 16 x 24 pixels, dark or bright in the 8 x 8 in their middle, the other way round in their border."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name, centre in (("bright", 160), ("dark", 0)):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (16, 24, 3), dtype=np.uint8) + np.uint8(160 - centre)
                pixels[4:12, 8:16] = random.integers(0, 90, (8, 8, 3), dtype=np.uint8) + np.uint8(centre)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_eval_predict_and_export_see_the_same_centre(tmp_path, in_memory):
    """Half of the shorter side, 16 pixels, is 8: nothing is resized, and the crop can be cut out of the files."""
    folder = framed_folder(tmp_path / "framed")
    settings = {"data": str(folder), "img_size": 8, "val_share": 0.0, "epochs": 1, "in_memory": in_memory, "workers": 0}
    result = train(small(tmp_path, eval_crop=0.5, **settings))
    best, paths = result.out / "best.safetensors", sorted((folder / "test").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))[4:12, 8:16]).permute(2, 0, 1) for path in paths])
    model, preparation = result.model, result.model.preparation
    with torch.no_grad():
        logits = model(normalise(pixels, preparation.mean, preparation.std))
    labels = torch.tensor([result.data.classes.index(path.parent.name) for path in paths])
    loss = pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.history[-1]["test_loss"] == loss and evaluate(best, folder)["loss"] == loss
    for answer, expected in zip(predict(best, paths), logits.softmax(1), strict=True):
        assert [dict(answer)[name] for name in result.data.classes] == pytest.approx(expected.tolist(), rel=1e-4)
    known = metadata(*checkpoints.load_any(best))
    assert known["crop_pct"] == preparation.crop_pct == 0.5
    assert train(small(tmp_path / "whole", **settings)).history[-1]["test_loss"] != loss


def photo(path, height: int, width: int):
    """A picture with something different everywhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def official_transform(path, size: int = 64) -> torch.Tensor:
    """The shorter side to size / 0.875, the centre, ImageNet's statistics; as torchvision rounds."""
    image = Image.open(path).convert("RGB")
    short, target = min(image.size), int(size / 0.875)
    image = image.resize([int(target * side / short) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
    return normalise(pixels[None], IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture
def official(tmp_path):
    """(a file as the official script writes it, its model): four classes, 64 pixels."""
    model = VisionMamba(VimConfig(img_size=64, patch_size=16, embed_dim=16, depth=1, num_classes=4)).eval()
    args = Namespace(input_size=64, nb_classes=4, eval_crop_ratio=0.875)
    torch.save({"model": to_official(model), "epoch": 299, "args": args}, tmp_path / "official.pth")
    return tmp_path / "official.pth", model


def test_an_official_file_names_classes_by_number(official, tmp_path, capsys):
    path, model = official
    for height, width in ((90, 130), (131, 77), (64, 64), (40, 301)):
        image = photo(tmp_path / "photo.png", height, width)
        [answers] = predict(path, [image], top=9)
        with torch.no_grad():
            expected = model(official_transform(image)).softmax(1)[0]
        assert {name for name, _ in answers} == set("0123")
        assert torch.allclose(
            torch.tensor([dict(answers)[name] for name in "0123"]), expected, atol=5e-4
        )  # a grey level, here and there
    assert cli.main(["predict", str(path), str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}  {answers[0][0]} ")


def test_an_official_file_is_scored_under_the_names_of_the_data(official, tmp_path, capsys):
    path, model = official
    expected = {}
    for split in ("train", "val"):
        for index, name in enumerate(("ant", "bee", "cat", "dog")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            image = photo(tmp_path / "data" / split / name / "a.png", 80 + 7 * index, 120 - 9 * index)
            with torch.no_grad():
                expected[name] = float(model(official_transform(image)).argmax() == index)
    found = evaluate(path, tmp_path / "data", workers=0)
    assert found["per_class"] == expected and found["images"] == 4
    assert cli.main(["eval", str(path), "--data", str(tmp_path / "data")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["ant", "bee", "cat", "dog"]
    with pytest.raises(ValueError, match="data has 10 classes; it must have as many as the model: 4"):
        evaluate(path, "digits")


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
def test_images_that_are_not_square_fill_the_models_shape(shape, tmp_path):
    model = create_model("vim_nano_patch2_8", img_size=shape, patch_size=8, embed_dim=16, depth=1, num_classes=2).eval()
    extra = {"classes": ["a", "b"], "mean": [0.0] * 3, "std": [1.0] * 3}
    checkpoints.save(model, tmp_path / "a.safetensors", extra)
    image = photo(tmp_path / "photo.png", shape[0] * 3, shape[1] * 3)  # of the same aspect: nothing is cut
    [[(name, probability), _]] = predict(tmp_path / "a.safetensors", [image])
    whole = Image.open(image).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(whole)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model(pixels).softmax(1)[0].max().item()
    assert probability == pytest.approx(expected, abs=1e-5)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            photo(tmp_path / "data" / split / name / "a.png", 50, 70)
    assert evaluate(tmp_path / "a.safetensors", tmp_path / "data")["images"] == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "classes is None; it must be a list of names"),
        ("ab", "classes is 'ab'; it must be a list of names"),
        ({"a": 1, "b": 2}, "classes is .*; it must be a list of names"),
        (["a", 3], r"classes is \['a', 3\]; it must be a list of names"),
        (["a"], "classes has 1 names; it must have one for each of the model's 2 outputs"),
        ([], "classes has 0 names"),
    ],
)
def test_classes_that_are_none_are_refused(classes, message, tmp_path):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, num_classes=2)
    checkpoints.save(model, tmp_path / "a.safetensors", {"classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3})
    image = photo(tmp_path / "photo.png", 8, 8)
    with pytest.raises(ValueError, match=message):
        predict(tmp_path / "a.safetensors", [image])


def test_no_name_steers_the_terminal(tmp_path, capsys):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, num_classes=2)
    classes = ["\x1b[2Jgone\n", "\ud800\u202e\x07"]
    checkpoints.save(model, tmp_path / "a.safetensors", {"classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3})
    image = photo(tmp_path / "\x1b[31mred.png", 8, 8)
    assert cli.main(["predict", str(tmp_path / "a.safetensors"), str(image)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.strip("\n").isprintable()
    assert "\\x1b[2Jgone\\n" in out and "\\ud800\\u202e\\x07" in out
    assert cli.main(["eval", str(tmp_path / "a.safetensors"), "--data", "digits"]) == 2
    assert capsys.readouterr().err.strip("\n").isprintable()


def test_models_without_one_answer_an_image_are_refused(tmp_path):
    image = photo(tmp_path / "photo.png", 8, 8)
    for fields in ({"num_classes": 0}, {"cls_token": "none", "global_pool": ""}):
        model = VisionMamba(VimConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, **{"num_classes": 2} | fields))
        torch.save(to_official(model), tmp_path / "a.pth")
        if "global_pool" in fields:
            args = Namespace(if_cls_token=False, final_pool_type="all")
            torch.save({"model": to_official(model), "args": args}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="it must be a classifier"):
            predict(tmp_path / "a.pth", [image])
    grey = VisionMamba(VimConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, num_classes=2, in_chans=1))
    torch.save(to_official(grey), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="for 1 channels; they must be three"):
        predict(tmp_path / "a.pth", [image])


def test_a_trained_model_says_how_its_images_were_prepared(small_data, tmp_path):
    result = train(small(tmp_path, epochs=1))
    loaded = checkpoints.load(result.out / "best.safetensors")
    for model in (result.model, loaded):
        assert model.default_cfg["mean"] == small_data.mean and model.default_cfg["std"] == small_data.std
        assert model.default_cfg["crop_pct"] == 1.0
