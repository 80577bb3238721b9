"""Where a model looks for a text and for each of its words: Grad-CAM laid over the picture.

Shapes: R pictures, L tokens and W words of the text, g x g patches.
Source: docs/papers/albef.md, section 3.11 ("per-word maps for visualisation").
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shared.evaluation.attention_maps import (
    ImageTextModel,
    Objective,
    contrast_saliency,
    heat,
    match_saliency,
)
from shared.predict.inputs import Pixels, Predictor
from shared.predict.outputs import Cell, thumbnail

SIDE, COLUMNS = 192, 8
VISIBLE = 0.75  # how opaque the colour of the hottest place is


def overlay_cells(
    predictor: Predictor,
    pictures: Sequence[Pixels],
    ids: Tensor,
    objective: Objective,
    layer: int,
    side: int = SIDE,
) -> list[list[Cell]]:
    """Of each image itself, then its overlays for the whole text, `ids` (L,), and each word, the
    longer side `side` pixels. `layer`: see `looked_at`."""
    model: ImageTextModel = predictor.module
    assert predictor.tokenizer is not None
    words = word_spans(predictor.tokenizer.tokens, ids.tolist())
    maps_of = matched_maps if objective == "matching" else similarity_maps
    spans = [span for _, span in words]
    maps = maps_of(model, predictor.views(pictures), ids.to(predictor.module.device), spans, layer)
    labels = ["the whole text", *(word for word, _ in words)]
    rows = []
    for picture, of_picture in zip(pictures, maps, strict=True):
        seen = thumbnail(predictor.seen(picture), side, smooth_up_to=2.0)
        overlays = [overlay(seen, values) for values in of_picture]
        cells = [Cell(shown, label) for shown, label in zip(overlays, labels, strict=True)]
        rows.append([Cell(seen, "what the model sees"), *cells])
    return rows


def matched_maps(
    model: ImageTextModel, views: Tensor, ids: Tensor, spans: Sequence[slice], layer: int
) -> Tensor:
    """(R, 1 + W, g, g) of the text and each word: what its tokens look at, so that it matches."""
    ids = ids.expand(len(views), -1)
    with torch.inference_mode():
        image_tokens = model.encoders.encode_image(views)[0]
    tokens = match_saliency(model, image_tokens, ids, torch.ones_like(ids), layer).words()
    return torch.stack([tokens[:, part].mean(dim=1) for part in (slice(None), *spans)], dim=1)


def similarity_maps(
    model: ImageTextModel, views: Tensor, ids: Tensor, spans: Sequence[slice], block: int
) -> Tensor:
    """(R, 1 + W, g, g) of the text and each word, as if it were the text: what the image's class
    token looks at, so that it is similar."""
    last = max([span.stop for span in spans], default=len(ids))
    texts = [ids, *(torch.cat([ids[:1], ids[span], ids[last:]]) for span in spans)]
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    ids, count = pad_sequence(texts, batch_first=True), len(views)
    views = views.repeat_interleave(len(texts), dim=0)
    found = contrast_saliency(model, views, ids.repeat(count, 1), mask.repeat(count, 1), block)
    return found.whole().unflatten(0, (count, -1))


def word_spans(vocabulary: Sequence[str], ids: Sequence[int]) -> list[tuple[str, slice]]:
    """The words of a text and the places of their pieces; [CLS] and [SEP] at its ends are none."""
    spans: list[tuple[str, slice]] = []
    pieces = [vocabulary[i] for i in ids]
    last = len(pieces) - (pieces[-1] == "[SEP]")
    for place, piece in enumerate(pieces[1:last], 1):
        if piece.startswith("##") and spans:
            word, span = spans.pop()
            spans.append((word + piece.removeprefix("##"), slice(span.start, place + 1)))
        else:
            spans.append((piece, slice(place, place + 1)))
    return spans


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """The picture under the colours of a map (g, g): the hotter, the less of it shines through."""
    warmth = heat(values, (picture.height, picture.width))
    colour = colormaps["turbo"](warmth)[..., :3] * 255
    opaque = VISIBLE * warmth[..., None] ** 0.7
    mixed = (1 - opaque) * np.asarray(picture) + opaque * colour
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
