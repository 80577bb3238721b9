"""Images against texts: how similar each pair is, and how probably it belongs together.

Shapes: N images, T texts, L tokens, R images at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.data.images import FolderImages
from shared.data.text.cleaning import clean_caption
from shared.evaluation.attention_maps import ImageTextModel
from shared.files import own_folder
from shared.predict.inputs import PredictError, Predictor, batches, tokenised
from shared.predict.overlays import chosen_layer, overlay_page
from shared.predict.sheets import COLUMNS, Cell, Section, percent, sheet, thumbnail
from shared.predict.tables import refuse_not_finite, write_csv, write_picture

MAX_WORDS = 30  # of a caption, as in training
PAIRS_PER_IMAGE = 4  # so many texts at a time for each image of a full batch


class Scores(NamedTuple):
    """Of the readable images (N): places in the folder's list, paths; of all pairs (N, T): cosines
    of image and text, and probabilities that they match."""

    indices: list[int]
    paths: list[Path]
    similarity: NDArray[np.float32]
    match: NDArray[np.float32]


class EncodedTexts(NamedTuple):
    """Mask (T, L), tokens (T, L, D) of the text-only layers, features (T, E)."""

    mask: Tensor
    tokens: Tensor
    features: Tensor


def reads_texts(module: object) -> bool:
    """Whether a module is an `ImageTextModel`."""
    return hasattr(module, "matching") and hasattr(module, "encoders")


def predict_texts(
    predictor: Predictor,
    images: FolderImages,
    base: Path,
    output: Path,
    texts: Sequence[str],
    batch_size: int,
    sheet_images: int,
    overlays: int,
    overlay_layer: int | None,
) -> list[Path]:
    """Writes scores.csv, predictions.csv, contact_sheet.png and overlays; returns their paths.

    Raises:
        PredictError: a model without texts, or texts that it cannot read.
    """
    if not reads_texts(predictor.module):
        name = type(predictor.module).__name__
        raise PredictError(f"texts are given, but {name} does not compare images with texts")
    ids, mask = tokenised(predictor, texts, "text", clean_caption, MAX_WORDS)
    layer = chosen_layer(predictor.module, overlay_layer) if overlays else 0
    scores = score(predictor, images, ids, mask, batch_size)
    names = [path.relative_to(base).as_posix() for path in scores.paths]
    own_folder(output)
    pairs = ["path", "text", "match_probability", "similarity"]
    written = [
        write_csv(output / "predictions.csv", pairs, _best_texts(scores, names, texts)),
        write_csv(output / "scores.csv", pairs, _all_pairs(scores, names, texts)),
        output / "contact_sheet.png",
    ]
    write_picture(written[-1], sheet(_sections(scores, images, names, texts, sheet_images)))
    for number, text in enumerate(texts) if overlays else ():
        best = best_images(scores, number)[:overlays]
        pixels = [images.take(np.array([scores.indices[i]]))[0][0] for i in best]
        marked = mask[number].bool()
        page = overlay_page(
            predictor, pixels, [names[i] for i in best], text, ids[number][marked], layer
        )
        written.append(write_picture(output / f"overlay_{number + 1}.png", page))
    return written


@torch.inference_mode()
def score(
    predictor: Predictor, images: FolderImages, ids: Tensor, mask: Tensor, batch_size: int
) -> Scores:
    """Scores of every image with every text (T, L).

    Raises:
        PredictError: no image can be read.
    """
    model: ImageTextModel = predictor.module
    ids, mask = ids.to(predictor.module.device), mask.to(predictor.module.device)
    texts = EncodedTexts(mask, *model.encoders.encode_text(ids, mask))
    indices, paths, similarity, match = [], [], [], []
    for found in batches(images, batch_size):
        tokens, features = model.encoders.encode_image(predictor.views(found.pixels))
        indices += found.indices
        paths += found.paths
        similarity.append(features.float() @ texts.features.float().T)
        match.append(match_probabilities(model, tokens, texts, PAIRS_PER_IMAGE * batch_size))
        for path, *scores in zip(found.paths, similarity[-1], match[-1], strict=True):
            refuse_not_finite(torch.stack(scores).cpu().numpy(), path)
    return Scores(
        indices, paths, torch.cat(similarity).cpu().numpy(), torch.cat(match).cpu().numpy()
    )


def match_probabilities(
    model: ImageTextModel, image_tokens: Tensor, texts: EncodedTexts, pairs: int
) -> Tensor:
    """(R, T) that each image matches each text, about `pairs` of them at a time."""
    images, parts = len(image_tokens), []
    for tokens, mask in zip(
        *(part.split(max(1, pairs // images)) for part in (texts.tokens, texts.mask)), strict=True
    ):
        pairs_of_images = tokens.repeat(images, 1, 1), mask.repeat(images, 1)
        text_encoder = model.encoders.text_encoder
        logits = model.matching.logits(text_encoder, image_tokens, *pairs_of_images)
        parts.append(logits.float().softmax(dim=1)[:, 1].view(images, len(mask)))
    return torch.cat(parts, dim=1)


def best_images(scores: Scores, text: int) -> list[int]:
    """Rows of the images, the best match of a text first."""
    match, similarity = scores.match[:, text], scores.similarity[:, text]
    return np.lexsort((-similarity, -match)).tolist()


def _best_texts(
    scores: Scores, names: Sequence[str], texts: Sequence[str]
) -> Iterator[Sequence[object]]:
    """One row an image: the text that it matches best."""
    for row, name in enumerate(names):
        best = int(scores.match[row].argmax())
        yield name, texts[best], scores.match[row, best], scores.similarity[row, best]


def _all_pairs(
    scores: Scores, names: Sequence[str], texts: Sequence[str]
) -> Iterator[Sequence[object]]:
    """One row a pair, text after text, the best matches of each first."""
    for column, text in enumerate(texts):
        for row in best_images(scores, column):
            yield names[row], text, scores.match[row, column], scores.similarity[row, column]


def _sections(
    scores: Scores,
    images: FolderImages,
    names: Sequence[str],
    texts: Sequence[str],
    sheet_images: int,
) -> list[Section]:
    """The best images of the first texts, `sheet_images` in all."""
    count = max(1, min(COLUMNS, sheet_images // len(texts)))
    sections = []
    for column, text in enumerate(texts[: max(1, sheet_images)]):
        cells = []
        for row in best_images(scores, column)[:count]:
            (pixels,), _ = images.take(np.array([scores.indices[row]]))
            match = f"match {percent(float(scores.match[row, column]))}"
            cells.append(Cell(thumbnail(pixels), match, names[row]))
        sections.append(Section(text, cells))
    return sections
