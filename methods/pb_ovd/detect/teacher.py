"""The frozen image-text model that says where in an image a word is.

Shapes: R images of side S, T texts of L tokens, g x g patches.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.checkpoints.zoo import zoo_file
from shared.data.captioned.origins import origin_of
from shared.data.errors import WorkError
from shared.evaluation.attention_maps import (
    check_cross_attention,
    match_saliency,
    third_fusion_layer,
)
from shared.predict.inputs import Predictor, load_predictor
from shared.predict.official import load_official

MAX_WORDS = 30  # of a caption, as in training
CLOSED = "its texts end with [SEP]: give ALBEF, whose maps were shown to be good enough"


class Teacher:
    """A model with matching, as ALBEF, and Grad-CAM on one `layer` of its cross-attention."""

    def __init__(self, predictor: Predictor, layer: int | None, origin: dict[str, str]) -> None:
        module, tokenizer, transform = predictor.module, predictor.tokenizer, predictor.transform
        said = f"{origin['name']} holds {type(module).__name__}"
        if not (hasattr(module, "matching") and hasattr(module, "encoders")):
            raise WorkError(f"{said}, which matches no images with texts: give ALBEF's --teacher")
        if tokenizer is None or tokenizer.closed:
            raise WorkError(f"{said}: {CLOSED if tokenizer else 'it has no vocabulary'}")
        encoder = module.encoders.text_encoder
        self.layer = third_fusion_layer(encoder) if layer is None else layer
        try:
            check_cross_attention(encoder, self.layer)
        except ValueError as error:
            raise WorkError(f"--layer: {error}") from error
        if self.layer == len(encoder.layers) - 1:
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

    def maps(self, images: Tensor, texts: Sequence[list[int]], owners: Sequence[int]) -> Tensor:
        """(T, L, g, g) maps of each token of texts, which belong to `images[owners[t]]`, (R, 3, S,
        S); each image is encoded once. WorkError if they are not finite."""
        length, device = max(map(len, texts)), self.module.device
        pad = self.tokenizer.pad_id
        ids = torch.tensor([text + [pad] * (length - len(text)) for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = (torch.arange(length, device=device) < lengths[:, None]).long()
        with torch.no_grad():
            seen = self.module.encoders.encode_image(images.to(device))[0]
        found = match_saliency(self.module, seen[torch.tensor(owners)], ids, mask, self.layer)
        maps = found.words(mask).cpu()
        if not maps.isfinite().all():
            raise WorkError(f"{self.origin['name']} gives maps that are not finite: damaged?")
        return maps


def load_teacher(
    path: str, experiment: str | None, overrides: Sequence[str], layer: int | None, device: str
) -> Teacher:
    """Load a checkpoint of ours or `zoo:NAME`, or an official one of an `experiment`; WorkError of
    a model that gives no maps, other errors as of `load_predictor` and `load_official`."""
    file = zoo_file(path) if path.startswith("zoo:") else Path(path)
    if experiment:
        return Teacher(load_official(file, experiment, overrides, device), layer, origin_of(file))
    return Teacher(load_predictor(file, device), layer, origin_of(file))
