"""Captions for images, as a model writes them."""

from collections.abc import Iterator

import torch

from shared.predict.inputs import Pictures, PredictError, Predictor
from shared.predict.outputs import Cell, Output, Table, sheet, thumbnail


@torch.inference_mode()
def predict_captions(
    predictor: Predictor, images: Pictures, batch_size: int, sheet_images: int
) -> Iterator[Output]:
    """Yield captions.csv and contact_sheet.png. The model's `captions` takes a batch of `images`
    (B, 3, S, S) and `indices` (B,), and returns ids (B, L) without what they begin with."""
    tokenizer, model = predictor.tokenizer, predictor.module
    if tokenizer is None:
        raise PredictError("the checkpoint records no vocabulary, so it cannot write texts")
    rows: list[tuple[str, str]] = []
    cells: list[Cell] = []
    for indices, pictures in images.batches(batch_size):
        batch = {"images": predictor.views(pictures), "indices": torch.tensor(indices)}
        texts = tokenizer.decode(model.captions(batch).cpu())
        for index, pixels, text in zip(indices, pictures, texts, strict=True):
            rows.append((images.name(index), text))
            if len(cells) < sheet_images:
                cells.append(Cell(thumbnail(pixels), text, images.name(index)))
    yield "captions.csv", Table(["path", "caption"], rows)
    yield "contact_sheet.png", sheet([("captions", cells)], headline=predictor.accuracy)
