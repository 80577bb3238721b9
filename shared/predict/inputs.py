"""What `tenfold predict` reads: the checkpoint, the folder of images, the texts."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from shared.checkpoints.reading import first_line, load_checkpoint, rebuild_module
from shared.data.errors import DataCorruptError
from shared.data.images import FolderImages
from shared.data.text.wordpiece import WordPiece
from shared.data.views.interface import Views, build_views
from shared.data.views.recipes import RecipeViews

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_SIDE = 4096  # pixels of what a network sees
MOST_PIXELS = 1 << 25  # of a picture; larger ones are shrunk
MOST_BYTES = 1 << 28  # of the pixels of a batch, and of a file of texts
MOST_CHARACTERS = 200  # of a class name


class PredictError(RuntimeError):
    """Prediction is not possible; the message says why."""


@dataclass(frozen=True)
class Predictor:
    """A trained module and what its checkpoint says of its inputs.

    `image_mode` as the data modules have it; `class_names` and `tokenizer` if they are recorded.
    """

    module: Any  # a LightningModule
    transform: Views
    image_mode: str
    class_names: list[str] | None
    tokenizer: WordPiece | None

    def views(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(B, C, H, W) what the network sees of them."""
        shown = [central_square(p) if self._squares else not_too_long(p) for p in pictures]
        return self.transform(shown, "test").to(self.module.device)

    def seen(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of a picture that the network sees, at the picture's own size."""
        if self._squares:
            return central_square(picture)
        resize = getattr(self.transform, "test_resize", None)
        if resize is None:
            return picture
        return central_square(picture, self.transform.size / resize)

    @property
    def _squares(self) -> bool:
        # Transforms of small images squash what is not square; the others treat it by themselves.
        return not hasattr(self.transform, "test_resize")


class ReadableImages(NamedTuple):
    """Some readable images: places in the folder's list, paths, pixels."""

    indices: list[int]
    paths: list[Path]
    pixels: list[NDArray[np.uint8]]


def load_predictor(path: Path, device: str) -> Predictor:
    """The module that a checkpoint names, with the views, class names and vocabulary of its data.

    Nothing but classes of ours is instantiated, whatever the file asks for.

    Raises:
        PredictError: no image transform, or one that is refused; a damaged vocabulary.
        CheckpointError, FileNotFoundError: from reading the checkpoint.
    """
    where = resolve_device(device)
    checkpoint = load_checkpoint(path)
    module = rebuild_module(checkpoint, path)
    data = checkpoint.get("datamodule_hyper_parameters")
    data = data if isinstance(data, Mapping) else {}
    return Predictor(
        module.to(where),
        _transform(data.get("augmentation"), path),
        "RGBA" if data.get("image_mode") == "RGBA" else "RGB",
        _names(checkpoint.get("class_names"), path),
        _tokenizer(checkpoint.get("vocabulary"), path),
    )


def _transform(recipe: Any, path: Path) -> Views:
    if not isinstance(recipe, Mapping) or "_target_" not in recipe:
        raise PredictError(f"{path} records no image transform, so it cannot predict images")
    try:
        transform = build_views(recipe)
        for key in ("size", "test_resize"):
            side = getattr(transform, key, None)
            if side is not None and not (type(side) is int and 1 <= side <= MOST_SIDE):
                raise ValueError(f"{key}={str(side)[:80]} is no side from 1 to {MOST_SIDE} pixels")
        pixels = np.zeros((8, 8, 4 if isinstance(transform, RecipeViews) else 3), np.uint8)
        if not torch.isfinite(transform([pixels], "test")).all():
            raise ValueError("it makes values that are not finite")
    # Arguments of a stranger surface as whatever their first wrong value provokes.
    except Exception as error:
        raise PredictError(f"{path}: its image transform is refused: {error}") from error
    return transform


def _names(names: Any, path: Path) -> list[str] | None:
    """Class names, each on one line and of a length that can be shown."""
    if not names:
        return None
    if not isinstance(names, list | tuple):
        raise PredictError(f"{path}: its class names are a {type(names).__name__}, not a list")
    return [" ".join(str(name).split())[:MOST_CHARACTERS] for name in names]


def _tokenizer(tokens: Any, path: Path) -> WordPiece | None:
    if not tokens:
        return None
    if not isinstance(tokens, list | tuple):
        raise PredictError(f"{path}: its vocabulary is a {type(tokens).__name__}, not a list")
    try:
        return WordPiece([str(token) for token in tokens])
    except DataCorruptError as error:
        raise PredictError(f"{path}: its vocabulary is refused: {error}") from error


def resolve_device(device: str) -> torch.device:
    """The device that a key of conf/predict.yaml names; `auto` is a GPU where there is one.

    Raises:
        PredictError: no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise PredictError(f"device={device} cannot be used here ({reason})") from error
    if found.type == "meta":
        raise PredictError(f"device={device} computes nothing")
    return found


def find_images(root: Path) -> list[Path]:
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
    return paths


def open_images(paths: Sequence[Path], mode: str) -> FolderImages:
    """They are read upright, of any size, when asked for; unreadable ones are in `corrupt`."""
    unknown = np.full(len(paths), -1)
    images = FolderImages(paths, unknown, [], "images", max_corrupt=1.0, mode=mode)
    images.upright, images.most_pixels = True, MOST_PIXELS
    return images


def batches(images: FolderImages, size: int) -> Iterator[ReadableImages]:
    """The readable images in order, up to `size` at a time, under a progress bar.

    A batch ends early once its pixels need `MOST_BYTES`.

    Raises:
        PredictError: at the end, if there was none.
    """
    found = 0
    batch = ReadableImages([], [], [])
    for index in track(range(len(images)), "predicting", disable=not sys.stderr.isatty()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unreadable images are listed at the end
            pixels = images.read(index)
        if pixels is None:
            continue
        found += 1
        batch.indices.append(index)
        batch.paths.append(Path(images.path(index)))
        batch.pixels.append(pixels)
        if len(batch.pixels) == size or sum(p.nbytes for p in batch.pixels) >= MOST_BYTES:
            yield batch
            batch = ReadableImages([], [], [])
    if batch.pixels:
        yield batch
    if not found:
        raise PredictError(f"none of the {len(images)} images can be read")


def central_square(image: NDArray[np.uint8], share: float = 1.0) -> NDArray[np.uint8]:
    """(H, W, C) -> (S, S, C), S that share of the shorter side."""
    height, width = image.shape[:2]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def not_too_long(image: NDArray[np.uint8], ratio: int = 16) -> NDArray[np.uint8]:
    """The middle of an image (H, W, C) whose longer side is more than `ratio` times the shorter.

    Enlarging the shorter side of a line of pixels would make gigabytes of which a square is kept.
    """
    height, width = image.shape[:2]
    longest = ratio * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return image[top : top + longest, left : left + longest]


def read_texts(given: Any, key: str) -> list[str]:
    """The texts of a file, one a line and blank lines apart, or of a list.

    Raises:
        PredictError: no such file, not a text file, or no text in it.
    """
    if isinstance(given, str):
        path = Path(given)
        if not path.is_file():
            raise PredictError(
                f"{key}={given}: no such file; texts themselves are given as a list, as in "
                f"{key}='[a red apple, a dog]'"
            )
        if path.stat().st_size > MOST_BYTES:
            raise PredictError(f"{key}={given}: larger than {MOST_BYTES >> 20} MiB")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PredictError(f"{key}={given}: not a text file ({error})") from error
    elif isinstance(given, Sequence):
        lines = [str(text) for text in given]
    else:
        raise PredictError(f"{key}={given}: a file or a list of texts is expected")
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise PredictError(f"{key}={given}: no text in it")
    return texts


def tokenised(
    predictor: Predictor,
    texts: Sequence[str],
    kind: str,
    clean: Callable[[str, int], str],
    max_words: int,
) -> tuple[Tensor, Tensor]:
    """Ids and mask (T, L) of texts after `clean`, which keeps `max_words` words.

    A text that loses words is named on stderr. `kind` is what messages call a text.

    Raises:
        PredictError: no vocabulary in the checkpoint, a text without a word, or one that is longer
            than the model's positions.
    """
    if predictor.tokenizer is None:
        raise PredictError("the checkpoint records no vocabulary, so it cannot read texts")
    cleaned = [clean(text, max_words) for text in texts]
    for number, (text, kept) in enumerate(zip(texts, cleaned, strict=True), 1):
        if not kept.strip():
            raise PredictError(f"{kind} {number} holds no word: {text!r}")
        words = len(clean(text, sys.maxsize).split())
        if words > max_words:
            note = f"{kind} {number}: its first {max_words} of {words} words are read"
            print(note, file=sys.stderr)
    ids, mask = predictor.tokenizer.batch(cleaned)
    positions = predictor.module.encoders.text_encoder.embeddings.position.num_embeddings
    lengths = mask.sum(dim=1).tolist()
    for number, length in enumerate(lengths, 1):
        if length > positions:
            raise PredictError(
                f"{kind} {number} is too long: it has {length} tokens, the model reads {positions}"
            )
    return ids, mask
