"""Where a model looks for a text and for each of its words: Grad-CAM laid over the picture.

Source: docs/papers/albef.md, section 3.11 ("per-word maps for visualisation").
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from shared.evaluation.attention_maps import ImageTextModel, heat, match_saliency
from shared.predict.inputs import Pixels, Predictor
from shared.predict.outputs import Cell, thumbnail

SIDE, COLUMNS = 192, 8
VISIBLE = 0.75  # how opaque the colour of the hottest place is


def overlay_cells(
    predictor: Predictor, pictures: Sequence[Pixels], ids: Tensor, layer: int, side: int = SIDE
) -> list[list[Cell]]:
    """Of each image itself, then its overlays for the whole text, `ids` (L,), and each word, the
    longer side `side` pixels. `layer`: see `match_saliency`."""
    model: ImageTextModel = predictor.module
    ids = ids.to(predictor.module.device).expand(len(pictures), -1)
    with torch.inference_mode():
        image_tokens = model.encoders.encode_image(predictor.views(pictures))[0]
    found = match_saliency(model, image_tokens, ids, torch.ones_like(ids), layer)
    assert predictor.tokenizer is not None
    words = word_spans(predictor.tokenizer.tokens, ids[0].tolist())
    rows = []
    for picture, tokens in zip(pictures, found.words(), strict=True):
        seen = thumbnail(predictor.seen(picture), side, smooth_up_to=2.0)
        maps = [("the whole text", tokens)] + [(word, tokens[place]) for word, place in words]
        overlays = [Cell(overlay(seen, values.mean(dim=0)), label) for label, values in maps]
        rows.append([Cell(seen, "what the model sees"), *overlays])
    return rows


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
