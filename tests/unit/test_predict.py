"""`tenfold predict`: any folder of images through a checkpoint, without surprises."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from methods.comatch.module import Supervised
from methods.pcl.module import MoCo
from shared import cli
from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import AtomicCheckpointIO, write_portable
from shared.overrides import CONF
from shared.predict import command, outputs
from shared.training.method import Method

NAMES = ["T-shirt/top", "a class with a very long name, indeed", "ankle boot"]
COLOUR = {
    "_target_": "shared.data.views.per_image.SmallImageViews",
    "size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def save(
    module: Method, path: Path, augmentation: dict[str, Any] | None = COLOUR, /, **facts: Any
) -> None:
    """A checkpoint as a run leaves it, with the `facts` that one adds."""
    image_mode = facts.pop("image_mode", "RGB")
    content: dict[str, Any] = {
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "datamodule_hyper_parameters": {"augmentation": augmentation, "image_mode": image_mode},
    }
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content | facts, path)


def write_checkpoint(
    path: Path, augmentation: dict[str, Any] | None = COLOUR, names: list[str] | None = NAMES
) -> Supervised:
    torch.manual_seed(3)
    channels = 1 if augmentation and len(augmentation["mean"]) == 1 else 3
    backbone = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [8, 8]}
    module = Supervised(
        backbone=backbone | {"in_channels": channels}, num_classes=3, projection=None,
        channels_last=True, lr=0.1, momentum=0.9, weight_decay=0.0, no_decay=[], total_steps=10,
        ema_decay=0.9, ema_warm_up=False,
    )  # fmt: skip
    save(module, path, augmentation, class_names=names)
    return module.eval()


def draw_images(folder: Path) -> None:
    """Colour, grey, transparent and tall images of several sizes, one of them in a subfolder."""
    (folder / "below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, mode, size in [
        ("a.png", "RGB", (32, 32)),
        ("b.jpg", "RGB", (200, 120)),
        ("c.png", "L", (28, 28)),
        ("below/d.png", "RGBA", (40, 300)),
        ("e.webp", "RGB", (1, 1)),
    ]:
        shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
        pixels = generator.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / name)


def main(arguments: list[str], composed: bool = True) -> None:
    """The command; `composed`: with Hydra's own config, which costs more than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        if not composed:
            plain = OmegaConf.load(CONF / "predict.yaml")
            merged = OmegaConf.merge(plain, OmegaConf.from_dotlist(arguments))
            patch.setattr(command, "compose", lambda name, argv: merged)
        (cli.predict if composed else command.main)(arguments)


def run(folder: Path, *arguments: str, composed: bool = False) -> Path:
    """The output of last.ckpt for the images."""
    given = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]
    main([*given, *arguments], composed)
    return folder / "out"


def read(output: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (output / name).open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, arguments: list[str], composed: bool = False) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments, composed)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


def test_probabilities_of_the_averaged_network(tmp_path, capsys):
    module = write_checkpoint(tmp_path / "last.ckpt")
    draw_images(tmp_path / "images")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    rows = read(run(tmp_path, "batch_size=2", composed=True))
    assert [row["path"] for row in rows] == ["a.png", "b.jpg", "below/d.png", "c.png", "e.webp"]
    assert list(rows[0]) == ["path", "class", "probability", *NAMES]
    for row in rows:
        values = [float(row[name]) for name in NAMES]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["class"] == NAMES[int(np.argmax(values))]
        assert float(row["probability"]) == max(values)

    pixels = np.asarray(Image.open(tmp_path / "images" / "a.png")).transpose(2, 0, 1)
    normalised = (torch.tensor(pixels)[None] / 255 - 0.5) / 0.25
    with torch.inference_mode():
        expected = module.ema_encoder(normalised)[0].softmax(1)[0]
    assert [float(rows[0][n]) for n in NAMES] == pytest.approx(expected.tolist(), abs=2e-6)
    assert "5 images predicted, 0 unreadable" in capsys.readouterr().out


def test_a_model_without_classes_groups_the_images(tmp_path):
    """Two kinds of pictures, each in slight variations, fall into two groups."""
    torch.manual_seed(0)
    backbone = {"_target_": "shared.nn.small_convnet.SmallConvNet", "in_channels": 3}
    module = MoCo(
        backbone=backbone, projection={"hidden": 0, "dim": 6}, queue_size=8, key_momentum=0.9,
        temperature=0.2, lr=0.1, momentum=0.9, weight_decay=0.0, schedule={"kind": "cosine"},
        total_epochs=1, channels_last=False, seed=0, evaluation={"clustering": False},
    )  # fmt: skip
    save(module, tmp_path / "last.ckpt")
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = np.full((32, 32, 3), (250, 20, 20), np.uint8)
        if number % 2:  # stripes
            pixels[::2] = (10, 30, 240)
        pixels += generator.integers(0, 5, pixels.shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    output = run(tmp_path, "groups=5")  # no more than a quarter of the images
    rows = read(output)
    assert list(rows[0]) == ["path", "group", "cosine", *(f"e{n}" for n in range(6))]
    groups = [
        {int(r["path"][0]) % 2 for r in rows if r["group"] == g} for g in ("group 0", "group 1")
    ]
    assert sorted(map(list, groups)) == [[0], [1]]
    assert [r["group"] for r in rows] == ["group 0"] * 4 + ["group 1"] * 4
    cosines = [float(r["cosine"]) for r in rows]
    assert cosines[:4] == sorted(cosines[:4], reverse=True)
    norms = [sum(float(r[f"e{n}"]) ** 2 for n in range(6)) for r in rows]
    assert norms == pytest.approx([1.0] * 8, abs=1e-4)
    assert (output / "contact_sheet.png").is_file()


def test_grey_model_and_missing_class_names(tmp_path):
    grey = {"_target_": "shared.data.views.tensors.TensorViews", "size": 28, "recipes": {}}
    write_checkpoint(tmp_path / "last.ckpt", grey | {"mean": [0.3], "std": [0.35]}, names=None)
    draw_images(tmp_path / "images")
    assert list(read(run(tmp_path))[0])[3:] == ["class 0", "class 1", "class 2"]


def test_only_the_centre_of_a_wide_image_counts(tmp_path):
    write_checkpoint(tmp_path / "last.ckpt")
    folder = tmp_path / "images"
    folder.mkdir()
    square = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(square).save(folder / "square.png")
    Image.fromarray(np.pad(square, ((0, 0), (50, 50), (0, 0)))).save(folder / "wide.png")
    rows = read(run(tmp_path))
    assert [row[NAMES[0]] for row in rows] == [rows[0][NAMES[0]]] * 2


def test_corrupt_images_are_skipped_counted_and_named(tmp_path, capsys):
    write_checkpoint(tmp_path / "last.ckpt")
    draw_images(tmp_path / "images")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    whole = (tmp_path / "images" / "b.jpg").read_bytes()
    (tmp_path / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    assert len(read(run(tmp_path))) == 5
    printed = capsys.readouterr()
    assert "2 unreadable skipped" in printed.out
    assert "broken.jpg" in printed.err
    assert "cut.jpg" in printed.err


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    write_checkpoint(tmp_path / "last.ckpt")
    checkpoint, folder = f"checkpoint={tmp_path}/last.ckpt", tmp_path / "images"
    images = f"images={folder}"
    assert "checkpoint and images or videos not given" in refused(capsys, [])
    assert "predict: images or videos not given" in refused(capsys, [checkpoint])
    assert "choose one" in refused(capsys, [checkpoint, images, f"videos={folder}"])
    assert "no such folder" in refused(capsys, [checkpoint, images])
    folder.mkdir()
    (folder / "a.txt").write_text("")
    assert "no image there (1 other files" in refused(capsys, [checkpoint, images])
    (folder / "a.jpg").write_text("no image")
    assert "none of the 1 images" in refused(capsys, [checkpoint, images])
    assert "did you mean checkpoint?" in refused(capsys, [images, "chekpoint=x"], composed=True)
    texts = [checkpoint, images, "texts=[a dog]"]
    assert "Supervised does not compare images with texts" in refused(capsys, texts)
    assert "no checkpoint at" in refused(capsys, ["checkpoint=x.ckpt", images])
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 and so on")
    assert "refused" in refused(capsys, [f"checkpoint={tmp_path}/damaged.ckpt", images])


def test_transforms_that_are_not_ours_are_not_executed(tmp_path, capsys):
    draw_images(tmp_path / "images")
    arguments = [f"checkpoint={tmp_path}/last.ckpt", f"images={tmp_path}/images"]
    bomb = {"_target_": "subprocess.call", "args": ["touch", f"{tmp_path}/boom"], "mean": []}
    write_checkpoint(tmp_path / "last.ckpt", bomb)
    assert "its image transform is refused" in refused(capsys, arguments)
    assert not (tmp_path / "boom").exists()
    write_checkpoint(tmp_path / "last.ckpt", None)
    assert "records no image transform" in refused(capsys, arguments)
    write_checkpoint(tmp_path / "last.ckpt", names=["one", "two"])
    assert "2 class names for 3 classes" in refused(capsys, arguments)


def test_contact_sheet_shows_the_first_images(tmp_path):
    write_checkpoint(tmp_path / "last.ckpt")
    draw_images(tmp_path / "images")
    output = run(tmp_path, "sheet_images=3")
    sheet = Image.open(output / "contact_sheet.png")
    cell = outputs.THUMBNAIL + outputs.GAP
    assert sheet.width == 3 * cell + outputs.GAP
    grey = np.asarray(sheet.convert("L"))
    for column in range(3):
        left = outputs.GAP + column * cell
        assert grey[60:120, left : left + outputs.THUMBNAIL].min() < 128, "no thumbnail"
        assert grey[170:210, left : left + outputs.THUMBNAIL].min() < 128, "no caption"
    # What the checkpoint says of its accuracy stands above all that.
    checkpoint = load_checkpoint(tmp_path / "last.ckpt") | {"accuracy": "right of 9 in 10\n"}
    write_portable(checkpoint, tmp_path / "small.safetensors")
    output = run(tmp_path, "sheet_images=3", f"checkpoint={tmp_path}/small.safetensors")
    headed = np.asarray(Image.open(output / "contact_sheet.png").convert("L"))
    assert headed.shape == (len(grey) + outputs.TITLE, sheet.width)
    assert headed[: outputs.TITLE].min() < 128
    assert grey[:8].min() == 255
