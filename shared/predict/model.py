"""A trained model in a few lines of Python, as in a notebook (docs/notebooks/).

    from shared.predict.model import load

    model = load("zoo:albef-emoji")
    features = model.features(images=["fruit.png", pixels], texts=["a banana", "a lion"])
    features.images @ features.texts.T               # cosines, (2, 2)
    model.match(["fruit.png"], ["a banana"])         # probabilities, (1, 1)
    model.overlays("fruit.png", "a banana")          # where it looks, for each word
    load("captioner.ckpt").captions(["fruit.png"], prompt="a drawing of", sample=True, seed=1)
    load("alpro.ckpt", frames=8).match(["dog.mp4"], ["a dog runs"])

Shapes: N images or videos, T texts, E width of features, K classes.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shared.evaluation.attention_maps import looked_at
from shared.predict.answers import MAX_WORDS as QUESTION_WORDS
from shared.predict.answers import answers_of
from shared.predict.detections import Objects, class_names, objects_in
from shared.predict.inputs import (
    VIDEOS,
    Pictures,
    Pixels,
    PredictError,
    Predictor,
    Videos,
    load_predictor,
    tokenised,
)
from shared.predict.official import load_official
from shared.predict.overlays import SIDE, overlay_cells
from shared.predict.texts import (
    MAX_WORDS,
    PAIRS_PER_IMAGE,
    decided_by,
    match_probabilities,
)
from shared.randomness import torch_generator

Picture = str | PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, a picture of Pillow, or uint8 pixels (H, W, 3 or 4). To a model that reads videos also
the file of one, or its frames (F, H, W, 3)."""


@dataclass(frozen=True)
class Features:
    """Of `images` (N, E) and `texts` (T, E), float32 on the CPU; of unit norm where the model
    compares them. What was not given has no rows."""

    images: Tensor
    texts: Tensor


class Model:
    """A trained model, `batch_size` images at a time; PredictError of all that it cannot do."""

    def __init__(self, predictor: Predictor, batch_size: int = 64):
        self.predictor, self.batch_size = predictor, batch_size
        self.accuracy, self.class_names = predictor.accuracy, predictor.class_names

    @property
    def abilities(self) -> frozenset[str]:
        """Of the methods `captions`, `answer` and `match` (with `overlays`), which need a
        vocabulary, and `detect` those that the model has."""
        module = self.predictor.module
        if hasattr(module, "name_classes"):
            return frozenset({"detect"})
        parts = {"captions": "captions", "answer": "answer", "match": "matching"}
        mute = self.predictor.tokenizer is None
        return frozenset(name for name, part in parts.items() if hasattr(module, part) and not mute)

    @property
    def prompt(self) -> str:
        """What the captions of a captioner begin with."""
        tokenizer, module = self.predictor.tokenizer, self.predictor.module
        if tokenizer is None or "captions" not in self.abilities:
            raise PredictError(f"{type(module).__name__} writes no captions")
        return tokenizer.decode(torch.tensor([list(module.hparams["prompt_ids"])]).long())[0]

    @torch.inference_mode()
    def captions(
        self,
        images: Sequence[Picture],
        prompt: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> list[str]:
        """A caption of each image, without the `prompt` that it goes on from, by default that of
        training. `settings` replace those of the model's `Generation`, whose lengths count the
        prompt and the token before it. What is sampled is a function of `seed` and the place of an
        image among the others."""
        module, tokenizer = self.predictor.module, self.predictor.tokenizer
        default = self.prompt
        assert tokenizer is not None
        prompt = default if prompt is None else prompt
        opening = tokenizer.opening(prompt.strip()).tolist()[1:]
        positions = module.decoder.transformer.embeddings.position.num_embeddings
        try:
            chosen = replace(module.generation, **settings)
            if not len(opening) + 1 < chosen.max_length <= positions:
                limits = f"more than its prompt's {len(opening) + 1} and at most {positions}"
                raise ValueError(f"max_length={chosen.max_length}: a caption has {limits} tokens")
        except (TypeError, ValueError) as error:
            raise PredictError(str(error)) from error
        texts: list[str] = []
        for views in self._views(images):
            draws = [
                torch.rand(chosen.max_length, generator=torch_generator(seed, number, "caption"))
                for number in range(len(texts), len(texts) + len(views))
            ]
            ids = module.write(views, opening, chosen, torch.stack(draws).to(views.device))
            texts += tokenizer.decode(ids[:, 1 + len(opening) :].cpu())
        return texts

    @torch.inference_mode()
    def features(self, images: Sequence[Picture] = (), texts: Sequence[str] = ()) -> Features:
        """Features of images and texts; of images alone where the model reads no texts."""
        module = self.predictor.module
        if hasattr(module, "contrast"):
            seen = [module.encoders.encode_image(views)[1] for views in self._views(images)]
        elif texts:
            raise PredictError(f"{type(module).__name__} has no features of texts")
        elif getattr(module, "predicts", "probabilities") != "embeddings":
            raise PredictError(f"{type(module).__name__} has no features of images")
        else:
            seen = [module.predict_step({"images": v}, 0) for v in self._views(images)]
        read = [module.encoders.encode_text(*self._tokens(texts))[1]] if texts else []
        return Features(_joined(seen), _joined(read))

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Picture]) -> Tensor:
        """(N, K) of a classifier's classes, whose names are `class_names`."""
        module = self.predictor.module
        kind = getattr(module, "predicts", "probabilities")
        if kind != "probabilities" or hasattr(module, "answer"):
            raise PredictError(f"{type(module).__name__} is no classifier of images")
        return _joined([module.predict_step({"images": v}, 0) for v in self._views(images)])

    @torch.inference_mode()
    def match(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """(N, T) probabilities that an image and a text belong together."""
        module, pairs = self.predictor.module, PAIRS_PER_IMAGE * self.batch_size
        if not hasattr(module, "matching"):
            raise PredictError(f"{type(module).__name__} does not match images with texts")
        ids, mask = self._tokens(texts)
        read, _ = module.encoders.encode_text(ids, mask)
        rows = []
        for views in self._views(images):
            seen, _ = module.encoders.encode_image(views)
            most = pairs * len(views) // views.shape[:-3].numel()
            rows.append(match_probabilities(module, seen, read, mask, most))
        return _joined(rows)

    def answer(
        self, images: Sequence[Picture], questions: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """For each image the answer to each question, and how probable it is."""
        module = self.predictor.module
        if not hasattr(module, "answer"):
            raise PredictError(f"{type(module).__name__} answers no questions")
        clean = self.predictor.rules.clean_question
        tokens = tokenised(self.predictor, questions, "question", clean, QUESTION_WORDS)
        answers = (
            answers_of(module, views, *tokens, self.batch_size) for views in self._views(images)
        )
        return [own for part in answers for own in part]

    def open_texts(self, source: str | None) -> None:
        """Say where the names of classes are embedded: see the module's method of that name."""
        if "detect" not in self.abilities:
            kind = type(self.predictor.module).__name__
            raise PredictError(f"{kind} detects no classes by their names")
        known = class_names(self.predictor) if self.class_names else []
        self.predictor.module.open_texts(source, known)

    def detect(
        self, image: Picture, names: Sequence[str], min_score: float = 0.3, most: int = 100
    ) -> tuple[Pixels, Objects]:
        """A picture (H, W, 3) and what is seen in it of the classes of these names, the surest
        first; `open_texts` comes before."""
        self.predictor.module.name_classes(names)
        pixels = _pixels(image, self.predictor)
        return pixels, objects_in(self.predictor, [pixels], min_score, most)[0]

    def overlays(
        self, image: Picture, text: str, layer: int | None = None, side: int = SIDE
    ) -> list[tuple[str, Image.Image]]:
        """What the model sees of an image, then where it looks (Grad-CAM) for the whole text and
        each of its words, each with its name; the longer side `side` pixels. `layer`: see
        `looked_at`, where the objective is what the model ranks by, see `decided_by`."""
        module = self.predictor.module
        if not hasattr(module, "matching"):
            raise PredictError(f"{type(module).__name__} does not match images with texts")
        ids, _ = self._tokens([text])
        objective = decided_by(module)
        try:
            layer = looked_at(module.encoders, objective, layer)
        except ValueError as error:
            raise PredictError(str(error)) from error
        pixels = _pixels(image, self.predictor)
        if pixels.ndim == 4:
            raise PredictError("overlays are drawn on images, not on videos")
        (cells,) = overlay_cells(self.predictor, [pixels], ids[0], objective, layer, side)
        return [(cell.name, cell.picture) for cell in cells]

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (T, L) on the model's device."""
        clean = self.predictor.rules.clean_caption
        ids, mask = tokenised(self.predictor, texts, "text", clean, MAX_WORDS)
        return ids.to(self.predictor.module.device), mask.to(self.predictor.module.device)

    def _views(self, images: Sequence[Picture]) -> Iterator[Tensor]:
        """What the network sees of the pictures, up to `batch_size`, or so many frames, at once."""
        predictor, start = self.predictor, 0
        while start < len(images):
            batch = [_pixels(images[start], predictor)]
            size = self.batch_size // (len(batch[0]) if batch[0].ndim == 4 else 1)
            batch += [_pixels(p, predictor) for p in images[start + 1 : start + size]]
            start += len(batch)
            yield predictor.views(batch)


def load(
    checkpoint: str | PathLike[str],
    device: str = "auto",
    official: str | None = None,
    overrides: Sequence[str] = (),
    frames: int | None = None,
) -> Model:
    """The model of a checkpoint of ours, `zoo:NAME`, or an official one, of which `official` names
    an experiment and `overrides` say what is different here, as "data.vocab=FOLDER". `frames`: of a
    video; None: as many as in the model's data.

    CheckpointError and FileNotFoundError of a file that cannot be read, PredictError of one that
    says too little of its inputs.
    """
    path = Path(checkpoint)
    if official is None:
        return Model(load_predictor(path, device).showing(frames))
    return Model(load_official(path, official, overrides, device).showing(frames))


def _pixels(picture: Picture, predictor: Predictor) -> Pixels:
    """(H, W, 3), (H, W, 4) where the model knows transparency, or (F, H, W, 3) of a video;
    PredictError of no picture."""
    mode = predictor.image_mode
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert(mode))
    if isinstance(picture, str | PathLike):
        path = Path(picture)
        files = Pictures(path, [path], mode)
        if path.suffix.lower() in VIDEOS:
            files = Videos(path, [path], predictor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = files.read(0)
        if pixels is None:
            raise PredictError(f"{path} cannot be read: {files.corrupt[str(path)]}")
        return pixels
    pixels = np.asarray(picture)
    if pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) and pixels.shape[3] == 3:
        return pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        told = f"{pixels.dtype} {pixels.shape}"
        raise PredictError(f"pixels are uint8 (H, W, 3 or 4), got {told}")
    return np.asarray(Image.fromarray(pixels).convert(mode))


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """All rows, float32 on the CPU; none of width 0 if there are none."""
    return torch.cat([part.float().cpu() for part in rows]) if rows else torch.empty(0, 0)
