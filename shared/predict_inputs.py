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

from shared.data.images import DataCorruptError, FolderImages
from shared.data.tokenizer import WordPiece
from shared.data.views import Views
from shared.training.checkpoints import load_checkpoint, load_module
from shared.training.trust import trusted_class

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


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
        seen = [central_square(p) for p in pictures] if self._squares else pictures
        return self.transform(seen, "test").to(self.module.device)

    def seen(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of a picture that the network sees, at the picture's own size."""
        if self._squares:
            return central_square(picture)
        resize = getattr(self.transform, "test_resize", None)
        if resize is None:
            return picture
        return central_square(picture, self.transform.size / resize)  # type: ignore[attr-defined]

    @property
    def _squares(self) -> bool:
        # Transforms of small images squash what is not square; the others treat it by themselves.
        return not hasattr(self.transform, "test_resize")


class Pictures(NamedTuple):
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
    module = load_module(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = load_checkpoint(path)
    data = checkpoint.get("datamodule_hyper_parameters")
    data = data if isinstance(data, Mapping) else {}
    names = checkpoint.get("class_names")
    return Predictor(
        module.to(device),
        _transform(data.get("augmentation"), path),
        "RGBA" if data.get("image_mode") == "RGBA" else "RGB",
        [str(name) for name in names] if names else None,
        _tokenizer(checkpoint.get("vocabulary"), path),
    )


def _transform(recipe: Any, path: Path) -> Views:
    if not isinstance(recipe, Mapping) or "_target_" not in recipe:
        raise PredictError(f"{path} records no image transform, so it cannot predict images")
    arguments = {str(key): value for key, value in recipe.items() if key != "_target_"}
    transform: Any = trusted_class
    try:
        transform = trusted_class(str(recipe["_target_"]), object)(**arguments)
    except (TypeError, ValueError) as error:
        raise PredictError(f"{path}: its image transform is refused: {error}") from error
    return transform


def _tokenizer(tokens: Any, path: Path) -> WordPiece | None:
    if not tokens:
        return None
    try:
        return WordPiece([str(token) for token in tokens])
    except DataCorruptError as error:
        raise PredictError(f"{path}: its vocabulary is refused: {error}") from error


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
    """They are read when asked for; unreadable ones are noted in `corrupt`."""
    unknown = np.full(len(paths), -1)
    return FolderImages(paths, unknown, [], "images", max_corrupt=1.0, mode=mode)


def batches(images: FolderImages, size: int) -> Iterator[Pictures]:
    """The readable images in order, up to `size` at a time, under a progress bar.

    Raises:
        PredictError: at the end, if there was none.
    """
    found = 0
    starts = range(0, len(images), size)
    for start in track(starts, "predicting", disable=not sys.stderr.isatty()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unreadable images are listed at the end
            pixels, used = images.take(np.arange(start, min(start + size, len(images))))
        found += len(pixels)
        if pixels:
            yield Pictures(used.tolist(), [Path(images.path(i)) for i in used], pixels)
    if not found:
        raise PredictError(f"none of the {len(images)} images can be read")


def central_square(image: NDArray[np.uint8], share: float = 1.0) -> NDArray[np.uint8]:
    """(H, W, C) -> (S, S, C), S that share of the shorter side."""
    height, width = image.shape[:2]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


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
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PredictError(f"{key}={given}: not a text file ({error})") from error
    else:
        lines = [str(text) for text in given]
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
