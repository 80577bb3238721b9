"""What the tabs of the demo page do, without the page: bounded input in, pictures and text out.

Whoever asks may be hostile: a picture is of a known kind and of bounded size, texts are short, and
what comes back (names of files, captions) is printable.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image

from shared.data.images import FORMATS, read_image
from shared.files import open_regular
from shared.predict.detections import draw
from shared.predict.inputs import PredictError, find_inputs, listed
from shared.predict.model import Model
from shared.predict.outputs import percent, thumbnail
from shared.showing import printable

KINDS = ", ".join(kind for kind in FORMATS if kind != "DIB")
MOST_BYTES = 16 << 20  # of an upload
MOST_PIXELS = 64 * 10**6  # of a picture before it is decoded
SHOWN_PIXELS = 1 << 22  # to which a larger one is shrunk
MOST_CHARACTERS = 500  # of a typed text
MOST_FILES, BATCH = 5_000, 32  # of the folder that is searched, and of them at a time
MOST_BEAMS, MOST_TOKENS, SAMPLES = 10, 100, 3
SIDE, LARGE = 256, 1024  # pixels of a picture that is shown among others, and alone
TASKS = ("captions", "answer", "match", "detect")
MOST_CLASSES = 100  # of a picture that is asked about

Shown = list[tuple[Image.Image, str]]  # pictures, each with what stands under it


class Desk:
    """The models that answer, each ability's first one by its name, and the folder that is
    searched, if there is one. PredictError where no model has an ability."""

    def __init__(self, models: Mapping[str, Model], root: Path | None = None):
        self.names = {
            task: name
            for task in TASKS
            for name, model in reversed(list(models.items()))
            if task in model.abilities
        }
        if not self.names:
            kinds = ", ".join(type(m.predictor.module).__name__ for m in models.values())
            raise PredictError(
                f"{kinds}: no model that captions, answers, matches or detects by words"
            )
        self.models = {task: models[name] for task, name in self.names.items()}
        self.album: Album | None = None
        if root is not None:
            if not self.can_search:
                raise PredictError(f"images={root}: no model here compares pictures with texts")
            self.album = Album(self.models["match"], root)

    @property
    def can_search(self) -> bool:
        model = self.models.get("match")
        return model is not None and hasattr(model.predictor.module, "contrast")

    def caption(
        self,
        path: str | None,
        prompt: str,
        sampled: bool,
        beams: int,
        top_p: float,
        lengths: tuple[int, int],
        seed: int,
    ) -> str:
        """The best caption by beam search, or some that are sampled, one a line, `lengths` of
        tokens at least and at most."""
        model, (shortest, longest) = self.models["captions"], lengths
        picture = upload(path, model.predictor.image_mode)
        if not (1 <= beams <= MOST_BEAMS and 0 <= shortest <= longest <= MOST_TOKENS):
            raise PredictError("the shortest caption must not be longer than the longest one")
        captions = model.captions(
            [picture] * (SAMPLES if sampled else 1),
            typed(prompt, "prompt", empty=True),
            seed % (1 << 63),
            sample=sampled,
            num_beams=beams,
            top_p=top_p,
            min_length=shortest,
            max_length=longest,
        )
        return "\n".join(printable(caption) for caption in captions)

    def answer(self, path: str | None, question: str) -> str:
        """The answer to a question about a picture, and how probable it is."""
        model = self.models["answer"]
        picture, text = upload(path, model.predictor.image_mode), typed(question, "question")
        (((reply, probability),),) = model.answer([picture], [text])
        return f"{printable(reply)} ({percent(probability)})"

    def match(self, path: str | None, text: str) -> tuple[str, Shown]:
        """How probably a text belongs to a picture, and where the model looks for each word."""
        model = self.models["match"]
        picture, text = upload(path, model.predictor.image_mode), typed(text, "text")
        (probability,) = model.match([picture], [text]).flatten().tolist()
        maps = model.overlays(picture, text, side=SIDE)
        return percent(probability), [(shown, printable(word)) for word, shown in maps]

    def detect(self, path: str | None, classes: str, least: float) -> tuple[str, Image.Image]:
        """The objects of named classes whose score is `least` or more, in words and as boxes."""
        model = self.models["detect"]
        picture = upload(path, model.predictor.image_mode)
        names = listed(typed(classes, "class"), MOST_CLASSES)
        pixels, found = model.detect(picture, names, min(1.0, max(0.0, least)))
        shown = Image.fromarray(draw(pixels, found, names))
        shown.thumbnail((LARGE, LARGE))
        scores, labels = found.scores.tolist(), found.labels.tolist()
        said = [f"{names[k - 1]} {percent(s)}" for s, k in zip(scores, labels, strict=True)]
        return "\n".join(map(printable, said)) or "nothing", shown

    def search(self, text: str, count: int) -> Shown:
        """The pictures of the folder that suit a text best."""
        if self.album is None:
            raise PredictError("no folder of pictures was given at the start")
        return self.album.search(typed(text, "text"), count)


class Album:
    """The pictures of a folder and their features, which are computed once; links that lead out of
    it, unreadable and too large pictures are left out. PredictError where none is left."""

    def __init__(self, model: Model, root: Path):
        self.model, self.root = model, root.resolve()
        self.paths: list[Path] = []
        rows = []
        files = find_inputs(self.root)
        if len(files) > MOST_FILES:
            raise PredictError(f"images={root}: {len(files)} pictures, more than {MOST_FILES}")
        for start in range(0, len(files), BATCH):
            pictures = dict(self._readable(files[start : start + BATCH]))
            if pictures:
                rows.append(model.features(list(pictures.values())).images)
                self.paths += pictures
        self.skipped = len(files) - len(self.paths)
        if not rows:
            raise PredictError(f"images={root}: none of the {len(files)} pictures can be read")
        self.features = torch.cat(rows)
        if not self.features.isfinite().all():
            raise PredictError(f"images={root}: the model gives features that are not finite")

    def _readable(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Image.Image]]:
        for path in paths:
            if path.resolve().is_relative_to(self.root):
                with suppress(PredictError):
                    yield path, upload(path, self.model.predictor.image_mode)

    def search(self, text: str, count: int) -> Shown:
        """The `count` pictures most similar to a text, the best match first, as in the papers."""
        cosines = self.features @ self.model.features(texts=[text]).texts[0]
        nearest = cosines.topk(min(max(1, count), len(self.paths))).indices.tolist()
        pictures = dict(self._readable([self.paths[place] for place in nearest]))
        if not pictures:
            raise PredictError("the pictures that suit this text best can no longer be read")
        matches = self.model.match(list(pictures.values()), [text])[:, 0].tolist()
        ranked = sorted(zip(matches, pictures.items(), strict=True), key=lambda row: -row[0])
        return [
            (thumbnail(np.asarray(picture), SIDE), f"{percent(match)} {self._name(path)}")
            for match, (path, picture) in ranked
        ]

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.root).as_posix())


def upload(path: str | os.PathLike[str] | None, mode: str) -> Image.Image:
    """The picture of a file, upright, in the `mode` of a model; PredictError of no such picture."""
    if not path:
        raise PredictError("choose a picture first")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= MOST_BYTES:
                with Image.open(file, formats=FORMATS) as header:
                    area = header.width * header.height
                if area <= MOST_PIXELS:
                    file.seek(0)
                    pixels = read_image(
                        cast(BinaryIO, file), mode, upright=True, most_pixels=SHOWN_PIXELS
                    )
                    return Image.fromarray(pixels)
    # A hostile header surfaces as whatever its first wrong byte provokes in PIL's decoders.
    except Exception as error:
        raise PredictError(f"this is no picture of a kind that is read: {KINDS}") from error
    limits = f"{MOST_BYTES >> 20} MiB and {MOST_PIXELS // 10**6} million pixels"
    raise PredictError(f"the picture is too large: at most {limits} are read")


def typed(text: str | None, kind: str, empty: bool = False) -> str:
    """A typed text, a `kind` in messages, on one line; PredictError of none, or one too long."""
    text = " ".join((text or "").split())
    if not (text or empty):
        raise PredictError(f"type a {kind} first")
    if len(text) > MOST_CHARACTERS:
        raise PredictError(f"the {kind} is longer than {MOST_CHARACTERS} characters")
    return printable(text)
