"""`tenfold predict checkpoint=FILE images=DIR [output=DIR]`: a folder of images through a model.

Writes predictions.csv (path, class, probability, one probability per class) and contact_sheet.png.
A self-supervised model knows no classes: its embeddings are grouped by k-means, and the group
stands for the class, the cosine to the group's centre for the probability, followed by the
embedding itself.
"""

import csv
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from shared.data.images import FolderImages
from shared.data.views import Views
from shared.evaluation.clustering import assign, kmeans
from shared.overrides import CONF, OverrideError, validate
from shared.training.checkpoints import CheckpointError, load_checkpoint, load_module
from shared.training.method import trusted_class

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
USAGE = "tenfold predict checkpoint=FILE images=DIR [output=DIR] [batch_size=N] [device=cuda]"


class PredictError(RuntimeError):
    """Prediction is not possible; the message says why."""


@dataclass(frozen=True)
class Prediction:
    """One image: `path`, `values` and a `thumbnail` if the sheet shows it.

    The values are probabilities (C,) of the classes or an embedding (d,); `name` and `confidence`
    are the most probable class and its probability, or the group and the cosine to its centre.
    """

    path: Path
    values: NDArray[np.float32]
    thumbnail: Image.Image | None
    name: str = ""
    confidence: float = float("nan")


def main(argv: Sequence[str]) -> None:
    """Console entry; what is wrong goes to stderr in one line, with exit status 2."""
    if {"-h", "--help"} & set(argv):
        print(f"{USAGE}\n\n{(CONF / 'predict.yaml').read_text()}", end="")
        return
    try:
        validate(argv, "predict")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("predict", list(argv))
        predict(config)
    except (OverrideError, PredictError, CheckpointError, FileNotFoundError) as error:
        print(f"tenfold predict: {error}", file=sys.stderr)
        sys.exit(2)


def predict(config: DictConfig) -> Path:
    """Predict as conf/predict.yaml says; returns the folder written to.

    Raises:
        PredictError: no images, none readable, or a checkpoint without an image transform.
        CheckpointError, FileNotFoundError: from reading the checkpoint.
    """
    missing = [key for key in ("checkpoint", "images") if key not in config or not config[key]]
    if missing:
        raise PredictError(f"{' and '.join(missing)} not given; usage: {USAGE}")
    root, output = Path(config.images), Path(config.output)
    images = find_images(root)
    module, transform, names = load_classifier(Path(config.checkpoint))
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)

    found = list(_predictions(module, transform, images, config.batch_size, config.sheet_images))
    if not found:
        raise PredictError(f"none of the {len(images)} images below {root} can be read")
    width = len(found[0].values)
    if getattr(module, "predicts", "probabilities") == "embeddings":
        columns = ["path", "group", "cosine", *(f"e{number}" for number in range(width))]
        found = grouped(found, config.groups)
    else:
        names = names or [f"class {number}" for number in range(width)]
        if len(names) != width:
            raise PredictError(f"the checkpoint has {len(names)} class names for {width} classes")
        columns = ["path", "class", "probability", *names]
        found = [_classified(item, names) for item in found]
    output.mkdir(parents=True, exist_ok=True)
    base = root if root.is_dir() else root.parent
    write_csv(output / "predictions.csv", found, columns, base)
    shown = [p for p in found if p.thumbnail is not None]
    contact_sheet(shown, f"{len(shown)} of {len(found)} images").save(output / "contact_sheet.png")
    for path, reason in images.corrupt.items():
        print(f"skipped, unreadable: {path} ({reason})", file=sys.stderr)
    print(
        f"{len(found)} images predicted, {len(images.corrupt)} unreadable skipped: "
        f"{output / 'predictions.csv'}, {output / 'contact_sheet.png'}"
    )
    return output


def find_images(root: Path) -> FolderImages:
    """The image files below `root`, sorted by path.

    Raises:
        PredictError: no such folder, or no image in it.
    """
    if not root.exists():
        raise PredictError(f"images={root}: no such folder")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        kinds = ", ".join(SUFFIXES)
        raise PredictError(
            f"images={root}: no image there ({len(files)} other files; read: {kinds})"
        )
    return FolderImages(paths, np.full(len(paths), -1), [], str(root), max_corrupt=1.0)


def load_classifier(path: Path) -> tuple[pl.LightningModule, Views, list[str] | None]:
    """The module that a checkpoint names, the views of its data, and its class names if recorded.

    Nothing but classes of ours is instantiated, whatever the file asks for.
    """
    module = load_module(path)
    checkpoint = load_checkpoint(path)
    data = checkpoint.get("datamodule_hyper_parameters")
    recipe = data.get("augmentation") if isinstance(data, Mapping) else None
    if not isinstance(recipe, Mapping) or "_target_" not in recipe:
        raise PredictError(f"{path} records no image transform, so it cannot predict images")
    arguments = {str(key): value for key, value in recipe.items() if key != "_target_"}
    try:
        transform: Any = trusted_class(str(recipe["_target_"]), object)(**arguments)
    except (TypeError, ValueError) as error:
        raise PredictError(f"{path}: its image transform is refused: {error}") from error
    names = checkpoint.get("class_names")
    return module, transform, [str(name) for name in names] if names else None


def _classified(item: Prediction, names: Sequence[str]) -> Prediction:
    best = int(item.values.argmax())
    return replace(item, name=names[best], confidence=float(item.values[best]))


def grouped(found: Sequence[Prediction], groups: int) -> list[Prediction]:
    """The predictions by k-means group of their embeddings, the most central first within each.

    There are at most `groups` groups, and no more than a quarter as many as images.
    """
    embeddings = torch.from_numpy(np.stack([item.values for item in found])).float()
    centroids = kmeans(embeddings, max(1, min(groups, len(found) // 4)), seed=0)
    group, _ = assign(embeddings, centroids)
    cosines = torch.cosine_similarity(embeddings, centroids[group], dim=1)
    named = [
        replace(item, name=f"group {int(number)}", confidence=float(cosine))
        for item, number, cosine in zip(found, group, cosines, strict=True)
    ]
    order = sorted(range(len(found)), key=lambda i: (int(group[i]), -float(cosines[i])))
    return [named[i] for i in order]


def central_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) -> (S, S, C), S the shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _predictions(
    module: pl.LightningModule,
    transform: Views,
    images: FolderImages,
    batch_size: int,
    sheet_images: int,
) -> Iterator[Prediction]:
    # Transforms of small images squash what is not square; those of ImageNet crop by themselves.
    squares = not hasattr(transform, "test_resize")
    shown = 0
    starts = range(0, len(images), batch_size)
    for number, start in enumerate(track(starts, "predicting", disable=not sys.stderr.isatty())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unreadable images are listed at the end
            pixels, used = images.take(np.arange(start, min(start + batch_size, len(images))))
        if not pixels:
            continue
        views = transform([central_square(p) for p in pixels] if squares else pixels, "test")
        paths = [Path(images.path(index)) for index in used]
        batch = {"images": views.to(module.device), "paths": list(map(str, paths))}
        with torch.inference_mode():
            probabilities = module.predict_step(batch, number).float().cpu().numpy()
        for path, picture, row in zip(paths, pixels, probabilities, strict=True):
            yield Prediction(path, row, _thumbnail(picture) if shown < sheet_images else None)
            shown += 1


def write_csv(
    path: Path, predictions: Sequence[Prediction], columns: Sequence[str], base: Path
) -> None:
    """One row per image: path (relative to `base`), name, confidence, then the values."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for item in predictions:
            values = [f"{value:.6f}" for value in (item.confidence, *item.values)]
            writer.writerow([item.path.relative_to(base).as_posix(), item.name, *values])
    os.replace(temporary, path)


THUMBNAIL, CAPTION, GAP, COLUMNS = 128, 40, 12, 10


def _thumbnail(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    scale = THUMBNAIL / max(picture.size)
    # Small images are shown with their pixels, large ones smoothly reduced.
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, kind)


def contact_sheet(predictions: Sequence[Prediction], title: str) -> Image.Image:
    """A grid of thumbnails, each with its class or group and how sure that is."""
    columns = min(COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    cell, row_height = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    width = max(columns * cell + GAP, 260)
    sheet = Image.new("RGB", (width, rows * row_height + GAP + 28), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), title, "black", font=ImageFont.load_default(16))
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    for number, item in enumerate(predictions):
        left = GAP + number % columns * cell
        top = 28 + GAP + number // columns * row_height
        if (picture := item.thumbnail) is not None:
            offset = (THUMBNAIL - picture.width) // 2, (THUMBNAIL - picture.height) // 2
            x, y = left + offset[0], top + offset[1]
            sheet.paste(picture, (x, y))
            # A frame, because a white picture would be lost on a white page.
            draw.rectangle((x, y, x + picture.width - 1, y + picture.height - 1), outline="silver")
        name = _fitted(draw, item.name, font)
        draw.text((left, top + THUMBNAIL + 3), name, "black", font=font)
        percent = f"{100 * item.confidence:.1f} %"
        draw.text((left, top + THUMBNAIL + 21), percent, "dimgray", font=small)
    return sheet


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Any) -> str:
    """`text`, shortened with an ellipsis to the width of a thumbnail."""
    if draw.textlength(text, font) <= THUMBNAIL:
        return text
    while text and draw.textlength(text + "…", font) > THUMBNAIL:
        text = text[:-1]
    return text + "…"
