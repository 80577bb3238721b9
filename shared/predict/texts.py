"""Images or videos against texts: how similar a pair is, and how probably it belongs together.

Shapes: N images or videos, T texts, L tokens, D their width, E of features, R images at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.evaluation import attention_maps
from shared.evaluation.attention_maps import ImageTextModel, Objective
from shared.predict import overlays as maps
from shared.predict.inputs import Pictures, PredictError, Predictor, refuse_not_finite, tokenised
from shared.predict.outputs import COLUMNS, Cell, Output, Table, percent, sheet

MAX_WORDS = 30  # of a caption, as in training
PAIRS_PER_IMAGE = 4  # so many texts at a time for each image of a full batch


def predict_texts(
    predictor: Predictor,
    images: Pictures,
    texts: Sequence[str],
    batch_size: int,
    sheet_images: int,
    overlays: int,
    overlay_layer: int | None,
) -> Iterator[Output]:
    """Yield predictions.csv, scores.csv, contact_sheet.png and overlays; see `decided_by`."""
    model: ImageTextModel = predictor.module
    if not hasattr(getattr(model, "encoders", None), "encode_text"):
        name = type(model).__name__
        raise PredictError(
            f"texts are given, but {name} does not compare {images.kind}s with texts"
        )
    if overlays and images.kind == "video":
        raise PredictError("overlays are drawn on images, not on videos")
    ids, mask = tokenised(predictor, texts, "text", predictor.rules.clean_caption, MAX_WORDS)
    objective, layer = decided_by(model), 0
    if overlays:
        try:
            layer = attention_maps.looked_at(model.encoders, objective, overlay_layer)
        except ValueError as error:
            raise PredictError(f"overlay_layer: {error}") from error
    indices, match, similarity = score(predictor, images, ids, mask, batch_size)
    names = [images.name(index) for index in indices]
    judging, evaluation = objective == "matching", getattr(model, "evaluation", None)
    best = ranked(match, similarity, getattr(evaluation, "k_test", "all") if judging else 0)

    scores: dict[str, NDArray[np.float32]] = {}
    if hasattr(model, "matching"):
        scores["match_probability"] = match
    scores["similarity"] = similarity

    def table(pairs: Iterator[tuple[int, int]]) -> Table:
        rows = ([names[i], texts[t], *(s[i, t] for s in scores.values())] for i, t in pairs)
        return Table(["path", "text", *scores], rows)

    chosen = (match if judging else similarity).argmax(axis=1)
    yield "predictions.csv", table((i, int(t)) for i, t in enumerate(chosen))
    yield "scores.csv", table((i, t) for t in range(len(texts)) for i in best[:, t])

    count = max(1, min(COLUMNS, sheet_images // len(texts)))
    sections = []
    for t, text in enumerate(texts[: max(1, sheet_images)]):
        cells = []
        for i in best[:count, t]:
            index = indices[i]
            (pixels,), _ = images.take(np.array([index]))  # one at a time: some are large
            said = f"similarity {similarity[i, t]:.2f}"
            if judging:
                said = f"match {percent(float(match[i, t]))}"
            cells.append(Cell(images.thumbnail(index, pixels), said, names[i]))
        sections.append((text, cells))
    yield "contact_sheet.png", sheet(sections, headline=predictor.accuracy)

    for t, text in enumerate(texts) if overlays else ():
        first = best[:overlays, t]
        words = ids[t][mask[t].bool()]
        titles = [f"{text}: {names[i]}" for i in first]
        pictures, _ = images.take(np.array(indices)[first])
        rows = maps.overlay_cells(predictor, pictures, words, objective, layer)
        sections = list(zip(titles, rows, strict=True))
        page = sheet(sections, maps.COLUMNS, maps.SIDE, predictor.accuracy)
        yield f"overlay_{t + 1}.png", page


def decided_by(model: Any) -> Objective:
    """Whether the matching head says which images suit a text, or the similarity, as where the
    model's own evaluation does without re-ranking."""
    reranked = getattr(getattr(model, "evaluation", None), "rerank", True) is not False
    return "matching" if hasattr(model, "matching") and reranked else "similarity"


def ranked(
    match: NDArray[np.float32], similarity: NDArray[np.float32], k: int | Literal["all"]
) -> NDArray[np.int64]:
    """(N, T) rows of images, the best for each text first: as in the papers' evaluation the `k`
    most similar ones by `match`, then the others by `similarity`."""
    if k == 0:
        return np.argsort(-similarity, axis=0, kind="stable")
    if k != "all":
        last = np.sort(similarity, axis=0)[-min(k, len(similarity))]
        match = np.where(similarity >= last, match, -1)
    return np.lexsort((-similarity, -match), axis=0)


@torch.inference_mode()
def score(
    predictor: Predictor, images: Pictures, ids: Tensor, mask: Tensor, batch_size: int
) -> tuple[list[int], NDArray[np.float32], NDArray[np.float32]]:
    """Places of the readable images (N) in their folder; of every image with every text (N, T) the
    probability that they match, 0 of a model that does not match, and the cosine."""
    model: ImageTextModel = predictor.module
    ids, mask = ids.to(predictor.module.device), mask.to(predictor.module.device)
    text_tokens, text_features = model.encoders.encode_text(ids, mask)
    places, similarity, match = [], [], []
    for indices, pictures in images.batches(batch_size):
        tokens, features = model.encoders.encode_image(predictor.views(pictures))
        places += indices
        similarity.append((features.float() @ text_features.float().T).cpu().numpy())
        pairs = PAIRS_PER_IMAGE * batch_size // images.frames
        if hasattr(model, "matching"):
            matched = match_probabilities(model, tokens, text_tokens, mask, pairs).cpu().numpy()
        else:
            matched = np.zeros_like(similarity[-1])
        match.append(matched)
        for index, *scores in zip(indices, similarity[-1], match[-1], strict=True):
            refuse_not_finite(np.stack(scores), images.path(index))
    return places, np.concatenate(match), np.concatenate(similarity)


def match_probabilities(
    model: ImageTextModel, images: Tensor, texts: Tensor, mask: Tensor, pairs: int
) -> Tensor:
    """(R, T) that each image, its tokens, matches each text, (T, L, D) of the text-only layers, or
    ids (T, L), and mask (T, L), about `pairs` of them at a time."""
    parts, some = [], max(1, pairs // len(images))
    for tokens, part in zip(texts.split(some), mask.split(some), strict=True):
        once = [1] * (tokens.ndim - 1)
        repeated = tokens.repeat(len(images), *once), part.repeat(len(images), 1)
        logits = model.matching.logits(model.encoders.text_encoder, images, *repeated)
        parts.append(logits.float().softmax(dim=1)[:, 1].view(len(images), len(part)))
    return torch.cat(parts, dim=1)
