"""The frozen image-text model that says where in an image a word is.

Shapes: R images of side S, T texts of L tokens, O objects of a text, g x g patches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from methods.pb_ovd.pseudo_boxes import object_maps
from shared.checkpoints.zoo import zoo_file
from shared.data.captioned.origins import origin_of
from shared.data.errors import WorkError
from shared.evaluation.attention_maps import (
    Objective,
    contrast_saliency,
    looked_at,
    match_saliency,
)
from shared.predict.inputs import Predictor, load_predictor
from shared.predict.official import load_official

MAX_WORDS = 30  # of a caption, as in training
OBJECTIVES = get_args(Objective)
CLOSED = "its texts end with [SEP]: give ALBEF, whose maps were shown to be good enough"


class Teacher:
    """A model with matching, as ALBEF, and Grad-CAM on its attention.

    Args:
        objective: whose gradient counts: `matching`, of the words of a caption to the image in one
            `layer` of the text stack, as in the paper; `similarity`, of the image's class token in
            one block of the vision transformer, each object being asked for by its words alone, for
            models whose matching tells little of single words.
        layer: see `looked_at`.
    """

    def __init__(
        self, predictor: Predictor, objective: Objective, layer: int | None, origin: dict[str, str]
    ) -> None:
        module, tokenizer, transform = predictor.module, predictor.tokenizer, predictor.transform
        said = f"{origin['name']} holds {type(module).__name__}"
        if not (hasattr(module, "matching") and hasattr(module, "encoders")):
            raise WorkError(f"{said}, which matches no images with texts: give ALBEF's --teacher")
        if tokenizer is None or tokenizer.closed:
            raise WorkError(f"{said}: {CLOSED if tokenizer else 'it has no vocabulary'}")
        encoder, self.objective = module.encoders.text_encoder, objective
        try:
            self.layer = looked_at(module.encoders, objective, layer)
        except ValueError as error:
            raise WorkError(f"--layer: {error}") from error
        if objective == "matching" and self.layer == len(encoder.layers) - 1:
            reason = "in the last layer only [CLS] has a gradient, and every map is 0"
            raise WorkError(f"--layer {self.layer}: {reason}; the teacher needs two with one")
        self.module, self.tokenizer, self.origin = module, tokenizer, origin
        self.size, self.mean, self.std = transform.size, transform.mean, transform.std
        self.on_white = predictor.image_mode == "RGBA"
        self.positions = encoder.embeddings.position.num_embeddings
        self._clean = predictor.rules.clean_caption

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The ids of cleaned captions, from [CLS] on."""
        ids, mask = self.tokenizer.batch(self._clean(caption, MAX_WORDS) for caption in captions)
        lengths = mask.sum(dim=1).tolist()
        return [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]

    def maps(
        self,
        images: Tensor,
        texts: Sequence[list[int]],
        owners: Sequence[int],
        spans: Sequence[Sequence[tuple[int, int]]],
        accumulate: bool = False,
    ) -> list[Tensor]:
        """Return maps (O, g, g) of the objects of each text, its tokens [left, right) by `spans`.

        Text t belongs to `images[owners[t]]`, of (R, 3, S, S); for `accumulate` see `object_maps`.
        WorkError if maps are not finite."""
        if self.objective == "matching":
            tokens = self._of_words(images, texts, owners)
            maps = [object_maps(*of, accumulate) for of in zip(tokens, spans, strict=True)]
        else:
            named = [[t[0], *t[a:b]] for t, of in zip(texts, spans, strict=True) for a, b in of]
            rows = torch.tensor([o for o, of in zip(owners, spans, strict=True) for _ in of])
            seen = images.to(self.module.device)[rows]
            found = contrast_saliency(self.module, seen, *self._padded(named), self.layer)
            maps = list(found.whole().cpu().split([len(of) for of in spans]))
        if not all(of_text.isfinite().all() for of_text in maps):
            raise WorkError(f"{self.origin['name']} gives maps that are not finite: damaged?")
        return maps

    def _of_words(
        self, images: Tensor, texts: Sequence[list[int]], owners: Sequence[int]
    ) -> Tensor:
        """(T, L, g, g) maps of each token; each image is encoded once."""
        ids, mask = self._padded(texts)
        with torch.no_grad():
            seen = self.module.encoders.encode_image(images.to(ids.device))[0]
        found = match_saliency(self.module, seen[torch.tensor(owners)], ids, mask, self.layer)
        return found.words(mask).cpu()

    def _padded(self, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (T, L) of texts."""
        length, device = max(map(len, texts)), self.module.device
        pad = self.tokenizer.pad_id
        ids = torch.tensor([text + [pad] * (length - len(text)) for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        return ids, (torch.arange(length, device=device) < lengths[:, None]).long()


def load_teacher(
    path: str,
    experiment: str | None,
    overrides: Sequence[str],
    objective: Objective,
    layer: int | None,
    device: str,
) -> Teacher:
    """Load a checkpoint of ours or `zoo:NAME`, or an official one of an `experiment`; WorkError of
    a model that gives no maps, other errors as of `load_predictor` and `load_official`."""
    file = zoo_file(path) if path.startswith("zoo:") else Path(path)
    if experiment:
        predictor = load_official(file, experiment, overrides, device)
    else:
        predictor = load_predictor(file, device)
    return Teacher(predictor, objective, layer, origin_of(file))
