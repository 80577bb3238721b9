"""What `tenfold predict` reads: the checkpoint, the folder of images or videos, the texts."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from shared.checkpoints.reading import first_line, load_checkpoint, rebuild_module
from shared.data.detection.framing import Framing, framing
from shared.data.errors import DataCorruptError
from shared.data.image_text.videos import FrameChoice
from shared.data.images import FolderImages, Pixels
from shared.data.readers.files import is_integer, open_data
from shared.data.readers.videos import decoder, read_frames
from shared.data.text.cleaning import TEXT_RULES, TextRules, text_rules
from shared.data.text.wordpiece import WordPiece
from shared.data.views.interface import Views, build_views
from shared.data.views.recipes import RecipeViews
from shared.predict.outputs import strip, thumbnail

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
SUFFIXES = {"images": IMAGES, "videos": VIDEOS}
MOST_SIDE = 4096  # pixels of what a network sees
MOST_PIXELS = 1 << 25  # of a picture; larger ones are shrunk
MOST_BYTES = 1 << 28  # of the pixels of a batch, and of a file of texts
MOST_FRAMES = 256  # of a video that a network sees
MOST_CHARACTERS = 200  # of a class name


class PredictError(RuntimeError):
    """Prediction is not possible; the message says why."""


@dataclass(frozen=True)
class Predictor:
    """A trained module and what its checkpoint says of its inputs, `image_mode` as in the data, and
    of how good it is, `accuracy`, a line that stands above pictures."""

    module: Any  # a LightningModule
    transform: Any  # `Views`; of a detector None
    image_mode: str
    class_names: list[str] | None
    tokenizer: WordPiece | None
    accuracy: str = ""
    rules: TextRules = TEXT_RULES["albef"]
    framing: Framing | None = None  # of a detector, which sees whole pictures
    category_ids: list[int] | None = None  # of a detector's classes, where its data number them
    choice: FrameChoice | None = None  # of the frames of a video, where its data are videos

    def views(self, pictures: Sequence[Pixels]) -> Tensor:
        """(B, C, H, W) what the network sees of them, or (B, F, C, H, W) of videos, (F, H, W, 3);
        PredictError of a detector, and of what the network does not read."""
        if self.transform is None:
            name = type(self.module).__name__
            raise PredictError(f"{name} detects objects, and nothing else: use tenfold predict")
        lengths = {p.shape[:-3] for p in pictures}  # (F,), or () of a picture
        if len(lengths) > 1:
            raise PredictError("pictures and videos, or such of unequal lengths, at once")
        (length,) = lengths
        self.refuse_unread("videos" if length else "images")
        frames = [frame for clip in pictures for frame in clip] if length else pictures
        shown = [central_square(p) if self._squares else not_too_long(p) for p in frames]
        return self.transform(shown, "test").unflatten(0, (-1, *length)).to(self.module.device)

    def refuse_unread(self, kind: str) -> None:
        """PredictError if the network does not read that kind, "images" or "videos"."""
        known = getattr(getattr(self.module, "encoders", None), "reads", ("images",))
        if kind not in known:
            name = type(self.module).__name__
            raise PredictError(f"{name} reads {' and '.join(known)}, not {kind}")

    def showing(self, frames: int | None) -> "Predictor":
        """A predictor that shows a network so many frames of a video, by the rule of its data;
        None: as many as in its data. PredictError of a number that can't be."""
        if frames is None:
            return self
        return replace(self, choice=replace(self.choice or FrameChoice(1), count=counted(frames)))

    def seen(self, picture: Pixels) -> Pixels:
        """The part of a picture that the network sees, at the picture's own size."""
        if self._squares:
            return central_square(picture)
        resize = getattr(self.transform, "test_resize", None)
        return picture if resize is None else central_square(picture, self.transform.size / resize)

    @property
    def _squares(self) -> bool:
        # Transforms of small images squash what is not square; the others treat it by themselves.
        return not hasattr(self.transform, "test_resize")


class Pictures(FolderImages):
    """Image files below `root`, or that file, read upright, of any size, when asked for."""

    frames = 1  # of each of them

    def __init__(self, root: Path, paths: Sequence[Path], mode: str) -> None:
        unknown = np.full(len(paths), -1)
        super().__init__(paths, unknown, [], "images", max_corrupt=1.0, mode=mode)
        self.upright, self.most_pixels = True, MOST_PIXELS
        self._root = root if root.is_dir() else root.parent

    def name(self, index: int) -> str:
        return Path(self.path(index)).relative_to(self._root).as_posix()

    def thumbnail(self, index: int, pixels: Pixels) -> Image.Image:
        """What a sheet shows of one that was just read."""
        return thumbnail(pixels)

    def batches(self, size: int) -> Iterator[tuple[list[int], list[Pixels]]]:
        """Yield places and pixels of the readable pictures, in order, under a progress bar: up to
        `size` frames at a time, or `MOST_BYTES` of pixels, but one picture at least. PredictError
        at the end, if there was none."""
        indices: list[int] = []
        pictures: list[Pixels] = []
        for index in track(range(len(self)), "predicting", disable=not sys.stderr.isatty()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # unreadable images are listed at the end
                picture = self.read(index)
            if picture is None:
                continue
            indices.append(index)
            pictures.append(picture)
            enough = len(pictures) >= size // self.frames
            if enough or sum(p.nbytes for p in pictures) >= MOST_BYTES:
                yield indices, pictures
                indices, pictures = [], []
        if pictures:
            yield indices, pictures
        if len(self.corrupt) == len(self):
            raise PredictError(f"none of the {len(self)} {self.kind}s can be read")


class Videos(Pictures):
    """Video files, each read as the frames (F, H, W, 3) that a model's evaluation would show it;
    PredictError if nothing says how many, or nothing here decodes them."""

    kind = "video"

    def __init__(self, root: Path, paths: Sequence[Path], predictor: Predictor) -> None:
        super().__init__(root, paths, "RGB")
        predictor.refuse_unread("videos")
        if predictor.choice is None:
            raise PredictError("the checkpoint records no number of a video's frames: frames=8")
        self.choice, self.frames = predictor.choice, predictor.choice.count
        self.numbers: dict[int, list[int]] = {}  # of the frames that are shown
        try:
            decoder(self.choice.decoder)
        except (ImportError, ValueError) as error:
            raise PredictError(str(error)) from error

    def decode(self, index: int, *turn: int) -> Pixels:
        def choose(count: int) -> list[int]:
            self.numbers[index] = self.choice.of(index)(count)
            return self.numbers[index]

        with open_data(self.path(index)) as file:
            return read_frames(file, choose, self.choice.decoder)

    def thumbnail(self, index: int, pixels: Pixels) -> Image.Image:
        return strip(pixels, self.numbers[index])


def load_predictor(path: Path, device: str) -> Predictor:
    """The module that a checkpoint names, with the views, class names and vocabulary of its data,
    of classes of ours alone. PredictError of a transform or vocabulary that is damaged or refused,
    CheckpointError and FileNotFoundError from reading the checkpoint."""
    where = resolve_device(device)
    checkpoint = load_checkpoint(path)
    module = rebuild_module(checkpoint, path)
    data = checkpoint.get("datamodule_hyper_parameters")
    data = data if isinstance(data, Mapping) else {}
    names, tokens, category_ids = (
        _recorded(checkpoint, key, path) for key in ("class_names", "vocabulary", "category_ids")
    )
    if not all(map(is_integer, category_ids)):
        raise PredictError(f"{path}: its category_ids are no list of integers")
    try:
        rules = text_rules(str(data.get("text_rules", "albef")))
        tokenizer = WordPiece([*map(str, tokens)], rules.added, rules.closed) if tokens else None
    except (DataCorruptError, ValueError) as error:
        raise PredictError(f"{path}: its vocabulary is refused: {error}") from error
    detects = hasattr(module, "detect_objects")
    return Predictor(
        module.to(where),
        None if detects else image_transform(data.get("augmentation"), path),
        "RGBA" if data.get("image_mode") == "RGBA" else "RGB",
        # Each on one line and of a length that can be shown.
        [" ".join(str(name).split())[:MOST_CHARACTERS] for name in names] or None,
        tokenizer,
        str(checkpoint.get("accuracy", ""))[:MOST_CHARACTERS],
        rules,
        detector_framing(data, path) if detects else None,
        category_ids or None,
        frame_choice(data, path),
    )


def image_transform(recipe: Any, path: Path) -> Views:
    """The views that a recipe makes; PredictError of none, or one that is damaged or refused."""
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


def detector_framing(data: Mapping[str, Any], path: Path) -> Framing:
    """How the data of a detector show it a picture; PredictError if they do not say, or say what
    is damaged or refused."""
    try:
        return framing(data)
    except Exception as error:  # as of image transforms
        raise PredictError(f"{path}: its preparation of pictures is refused: {error}") from error


def frame_choice(data: Mapping[str, Any], path: Path) -> FrameChoice | None:
    """How data of videos choose frames in evaluation, None of other data; PredictError of what is
    damaged or refused."""
    if (count := data.get("frames")) is None:
        return None
    rule, by = str(data.get("test_frames", "uniform")), str(data.get("decoder", "auto"))
    try:
        return FrameChoice(counted(count), test=rule, decoder=by)
    except (PredictError, ValueError) as error:
        raise PredictError(f"{path}: its choice of frames is refused: {error}") from error


def counted(frames: Any) -> int:
    """That number of a video's frames; PredictError of one that can't be."""
    if type(frames) is not int or not 1 <= frames <= MOST_FRAMES:
        raise PredictError(f"frames={repr(frames)[:80]}: a whole number from 1 to {MOST_FRAMES}")
    return frames


def _recorded(checkpoint: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """A list of a checkpoint, empty if it does not record it."""
    found = checkpoint.get(key) or []
    if not isinstance(found, list | tuple):
        raise PredictError(f"{path}: its {key} are a {type(found).__name__}, not a list")
    return list(found)


def resolve_device(device: str) -> torch.device:
    """The device of that name, else PredictError; `auto` is a GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).tolist()  # `meta` computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise PredictError(f"device={device} cannot be used here ({reason})") from error
    return torch.device(device)


def find_inputs(root: Path, kind: str = "images") -> list[Path]:
    """The files of a kind, "images" or "videos", below `root`, sorted by path, or `root` itself;
    PredictError without any."""
    if not root.exists():
        raise PredictError(f"{kind}={root}: no such folder")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    if not (paths := [path for path in files if path.suffix.lower() in SUFFIXES[kind]]):
        others = f"{len(files)} other files; read: {', '.join(SUFFIXES[kind])}"
        raise PredictError(f"{kind}={root}: no {kind[:-1]} there ({others})")
    return paths


def central_square(image: Pixels, share: float = 1.0) -> Pixels:
    """(H, W, C) -> (S, S, C), S that share of the shorter side."""
    height, width = image.shape[:2]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def not_too_long(image: Pixels, ratio: int = 16) -> Pixels:
    """The middle of an image whose longer side is more than `ratio` times the shorter: a line of
    pixels, enlarged, would make gigabytes of which a square is kept."""
    height, width = image.shape[:2]
    longest = ratio * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return image[top : top + longest, left : left + longest]


def refuse_not_finite(values: NDArray[Any] | Sequence[float], path: str) -> None:
    if not np.isfinite(values).all():
        reason = "its weights are damaged, or it was trained on images of another kind"
        raise PredictError(f"the model gives values that are not finite for {path}: {reason}")


def read_texts(given: Any, key: str) -> list[str]:
    """The texts of a file, one a line and blank lines apart, or of a list; else PredictError."""
    lines: Sequence[Any]
    if isinstance(given, str):
        path = Path(given)
        if not path.is_file():
            hint = f"texts themselves are given as a list, as in {key}='[a red apple, a dog]'"
            raise PredictError(f"{key}={given}: no such file; {hint}")
        if path.stat().st_size > MOST_BYTES:
            raise PredictError(f"{key}={given}: larger than {MOST_BYTES >> 20} MiB")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PredictError(f"{key}={given}: not a text file ({error})") from error
    elif isinstance(given, Sequence):
        lines = given
    else:
        raise PredictError(f"{key}={given}: a file or a list of texts is expected")
    texts = [text for line in lines if (text := str(line).strip())]
    if not texts:
        raise PredictError(f"{key}={given}: no text in it")
    return texts


def listed(text: str, most: int) -> list[str]:
    """Names with commas between, each once; PredictError of none, too many or one that is long."""
    names = [name for part in text.split(",") if (name := " ".join(part.split()))]
    if not 0 < len(names := list(dict.fromkeys(names))) <= most:
        raise PredictError(
            f"{len(names)} names are given: one, or up to {most} with commas between"
        )
    if longest := [name for name in names if len(name) > MOST_CHARACTERS]:
        raise PredictError(f"a name is longer than {MOST_CHARACTERS} characters: {longest[0][:40]}")
    return names


def tokenised(
    predictor: Predictor,
    texts: Sequence[str],
    kind: str,
    clean: Callable[[str, int], str],
    max_words: int,
) -> tuple[Tensor, Tensor]:
    """Ids and mask (T, L) of texts, a `kind` in messages, after `clean`, which keeps `max_words`
    words; a text that loses some is named on stderr. PredictError without a vocabulary, and of a
    text without a word or longer than the positions."""
    if predictor.tokenizer is None:
        raise PredictError("the checkpoint records no vocabulary, so it cannot read texts")
    cleaned = [clean(text, max_words) for text in texts]
    ids, mask = predictor.tokenizer.batch(cleaned)
    positions = predictor.module.encoders.text_encoder.embeddings.position.num_embeddings
    lengths = mask.sum(dim=1).tolist()
    for number, (text, kept, length) in enumerate(zip(texts, cleaned, lengths, strict=True), 1):
        if not kept.strip():
            raise PredictError(f"{kind} {number} holds no word: {text!r}")
        if length > positions:
            limits = f"it has {length} tokens, the model reads {positions}"
            raise PredictError(f"{kind} {number} is too long: {limits}")
        if (words := len(clean(text, sys.maxsize).split())) > max_words:
            note = f"{kind} {number}: its first {max_words} of {words} words are read"
            print(note, file=sys.stderr)
    return ids, mask
