"""A trained checkpoint at work: scores, predictions, and what is refused."""

import pytest

from minivim import create_model
from minivim.models import checkpoints
from minivim.train import train
from minivim.train.prediction import evaluate, predict
from tests.train.small_runs import small

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def test_predict_names_what_is_in_image_files(small_data, tmp_path):
    from PIL import Image

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
