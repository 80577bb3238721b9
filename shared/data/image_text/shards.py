"""Image-text pairs in tar shards, as webdataset, img2dataset and video2dataset write them.

A shard holds members `<key>.jpg` (or .jpeg, .png, .webp, or of a video .mp4, .webm, .mkv, .avi)
with `<key>.txt`, a caption, or `<key>.json`, `{"caption": text or list of texts, "image_id":
optional}`; of both the .txt is the caption. A key ends at the first dot of the file name and names
one sample of its shard.

Nothing is unpacked. Each shard's table of members is read once and kept in a small index file;
after that every sample is one read at a known place.
"""

import hashlib
import io
import logging
import os
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError
from shared.data.image_text.pairs import AnnotatedSamples, PairData, TrainingSource
from shared.data.image_text.videos import FrameChoice
from shared.data.images import FileImages, Pixels
from shared.data.loading.feature_cache import Arrays, cached
from shared.data.loading.streams import Draws, Interleaved, Stream
from shared.data.packages import cache_folder
from shared.data.readers.files import LARGEST, find_files, open_data, refusing, shortened
from shared.data.readers.tars import DamagedTarError, is_special, json_object, key_of, tar_members
from shared.data.readers.videos import read_frames
from shared.data.text.cleaning import clean_caption
from shared.files import open_regular

log = logging.getLogger(__name__)

Place = tuple[int, int]  # offset and size in bytes

_IDS = (int, str)  # what an "image_id" may be; any other counts as none
_PICTURES = ("jpg", "jpeg", "png", "webp", "mp4", "webm", "mkv", "avi")
_KINDS = {"txt": "txt", "json": "json"} | dict.fromkeys(_PICTURES, "image")
_VERSION = 3  # of index files; rises with every change of what is in them
_MAX_TEXT = 1 << 20  # bytes; what is longer is no caption
_MAX_IMAGE = 1 << 30  # and no picture


class ShardChangedError(RuntimeError):
    """A shard is not what it was when its table was read."""


class Row(NamedTuple):
    """A sample of a shard: where its picture lies, and its caption or the json that holds it."""

    image: int
    image_size: int
    text: int
    text_size: int
    is_json: bool | int
    identity: int  # a hash of its "image_id", 0 without one


class ShardSamples(FileImages):
    """The pairs of all `shards`, a `TrainingSource` of `shared.data.image_text.pairs`.

    Pictures without a caption are left out with a warning. Refused are shards that are missing,
    given twice, compressed, cut off or no tar file, have links or two files of one kind for a key.

    `shards` are paths or patterns ("/data/cc3m/*.tar"). Index files go to `index_folder`, by
    default `shard-index` in TENFOLD_CACHE (data/cache).
    `window` is that of `WindowShuffle`. With a `choice` of frames the shards hold videos.
    """

    def __init__(
        self,
        shards: str | Path | Iterable[str | Path],
        max_corrupt: float = 0.01,
        mode: str = "RGB",
        index_folder: str | Path | None = None,
        window: int = 8,
        cache: bool = False,
        draft: int | None = None,
        choice: FrameChoice | None = None,
    ) -> None:
        super().__init__(max_corrupt, truncated=True, mode=mode, cache=cache, draft=draft)
        self.choice = choice
        if choice is not None:
            self.kind = "video"
            if cache:
                raise ValueError("cache_images: videos of shards are not kept, they are too many")
        self.shards = find_files(shards, "shard", "DIR/*.tar")
        if window < 1:
            raise ValueError(f"window={window}: at least one shard at a time")
        self.window = window
        self._stamps = [_stamp(os.stat(shard)) for shard in self.shards]
        tables = _tables(self.shards, self._stamps, index_folder)
        self._rows = np.concatenate(tables)
        self._ends = np.cumsum([len(rows) for rows in tables])

    def __len__(self) -> int:
        return len(self._rows)

    def stream(self, seed: int) -> "WindowShuffle":
        return WindowShuffle(seed, self._ends, self.window)

    def path(self, index: int) -> str:
        """The shard, and the member's name from the tar header before the picture."""
        shard, row = self._place(index)
        header = self._read(shard, row.image - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
        return f"{self.shards[shard]}: {name} at byte {row.image}"

    def group(self, index: int, *turn: int) -> list[Pixels] | None:
        pixels = self.read(index, *turn)
        if pixels is None:
            return None
        return [pixels] if self.choice is None else list(pixels)

    def decode(self, index: int, *turn: int) -> Pixels:
        if self.choice is None:
            return super().decode(index)
        return read_frames(self.content(index), self.choice.of(index, *turn), self.choice.decoder)

    def content(self, index: int) -> BinaryIO:
        shard, row = self._place(index)
        return io.BytesIO(self._read(shard, row.image, row.image_size))

    def entry(self, index: int) -> dict[str, Any]:
        """A sample's {"caption": text or list of texts, "image", "image_id", "index"}: where the
        picture is, and a hash of the "image_id" of the shard, or None."""
        shard, row = self._place(index)
        text = self._read(shard, row.text, row.text_size)
        caption = _caption(text, "json" if row.is_json else "txt")
        if not _has_words(caption):
            where = f"{self.shards[shard]}: no caption at byte {row.text}"
            raise DataCorruptError(f"{where}; its index file is of another shard, delete it")
        place = {"image": f"{self.shards[shard]} {row.image}", "index": index}
        return {"caption": caption, "image_id": row.identity or None, **place}

    def _place(self, index: int) -> tuple[int, Row]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, Row(*self._rows[index].tolist())

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        file = _opened(self.shards[shard], self._stamps[shard])
        return os.pread(file.fileno(), size, offset)


class WindowShuffle(Stream):
    """Every sample once an epoch: shards in random order, and `window` of them shuffled together,
    so that only that many files are read at a time. `ends` (S,): where each shard's samples end."""

    def __init__(self, seed: int, ends: NDArray[np.int64], window: int) -> None:
        super().__init__(seed, int(ends[-1]), 0)
        self.ends, self.window = ends, window

    def draws(self, epoch: int) -> Draws:
        generator = self._generator(epoch)
        starts = np.concatenate([[0], self.ends[:-1]])
        order = generator.permutation(len(self.ends))
        positions = []
        for first in range(0, len(order), self.window):
            shards = order[first : first + self.window]
            together = np.concatenate([np.arange(starts[s], self.ends[s]) for s in shards])
            positions.append(generator.permutation(together))
        return Draws(np.concatenate(positions), np.full(len(self), epoch, np.int64))


@dataclass(eq=False)
class MixedSamples:
    """Entries of JSON files and pairs of shards as one `TrainingSource`: the samples of the shards
    are numbered behind the others, and so are their entries."""

    annotated: AnnotatedSamples
    shards: ShardSamples

    def __len__(self) -> int:
        return len(self.annotated) + len(self.shards)

    def stream(self, seed: int) -> Stream:
        parts = self.annotated.stream(seed), self.shards.stream(seed)
        return Interleaved(seed, parts, (0, len(self.annotated)))

    def group(self, index: int, *turn: int) -> list[Pixels] | None:
        source, own = self._own(index)
        return source.group(own, *turn)

    def entry(self, index: int) -> dict[str, Any]:
        source, own = self._own(index)
        entry = source.entry(own)
        behind = len(self.annotated.annotations) if source is self.shards else 0
        return entry | {"index": entry["index"] + behind}

    def _own(self, index: int) -> tuple[TrainingSource, int]:
        """The part that a sample belongs to, and its number there."""
        first = len(self.annotated)
        return (self.annotated, index) if index < first else (self.shards, index - first)


class ShardPairData(PairData):
    """As `PairData`, with training pairs from `ShardSamples`, and those of `files.train` and of
    `rotating`, if given, mixed with these; then `subset` must be None. `shards` None reads these
    alone."""

    def __init__(
        self,
        shards: str | Sequence[str] | None,
        index_folder: str | None = None,
        window: int = 8,
        **pairs: Any,
    ) -> None:
        super().__init__(**pairs)
        if shards is not None and self._h.subset is not None:
            raise ValueError("subset can't be taken of shards: name fewer of them")

    def prepare_data(self) -> None:
        """On one process of each node: the others find its index files."""
        if self._h.shards is not None:
            _ = self.source

    @cached_property
    def source(self) -> TrainingSource:
        h = self._h
        if h.shards is None:
            return super().source
        how: dict[str, Any] = {"cache": h.cache_images, "draft": h.draft, "choice": self.choice}
        shards = ShardSamples(
            h.shards, h.max_corrupt, h.image_mode, h.index_folder, h.window, **how
        )
        if not (h.files.get("train") or h.rotating):
            return shards
        return MixedSamples(super().source, shards)  # type: ignore[arg-type]


def read_table(path: str | Path) -> Arrays:
    """Read the members' names and places, and the captions, from a tar file: the `rows` (n, 6) of
    its samples, int64, see `Row`, in the order of their pictures; how many pictures without a
    caption are `left_out`, (1,), and the key of one as an `example`, bytes."""
    log.info("reading the members of %s", path)
    with open_data(path) as file:
        samples = {k: parts for k, parts in _members(path, file).items() if "image" in parts}
        rows = {key: _row(parts, file) for key, parts in samples.items()}
    left_out = [key for key, row in rows.items() if row is None]
    kept = [row for row in rows.values() if row is not None]
    return {
        "rows": np.array(kept, np.int64).reshape(-1, len(Row._fields)),
        "left_out": np.array([len(left_out)]),
        "example": np.frombuffer(next(iter(left_out), "").encode(errors="replace"), np.uint8),
    }


def _members(path: str | Path, file: BinaryIO) -> dict[str, dict[str, Place]]:
    """key -> kind -> place, in the order of first appearance; other files are ignored."""
    members: dict[str, dict[str, Place]] = {}
    try:
        for member in tar_members(file):
            if is_special(member) or member.size > _MAX_IMAGE:
                problem = "a link or another special member" if is_special(member) else "too large"
                told = f"{path}: {shortened(member.name)} is {problem}"
                raise DataCorruptError(f"{told}; a shard holds plain files only")
            key, suffix = key_of(member.name)
            if (kind := _KINDS.get(suffix)) is None:
                continue
            parts = members.setdefault(key, {})
            if kind in parts:
                told = f"{path}: two files of kind {kind} for key {shortened(key)}"
                raise DataCorruptError(f"{told}; each sample of a shard needs a key of its own")
            parts[kind] = (member.offset_data, member.size)
    except DamagedTarError as error:
        raise DataCorruptError(f"{path}: {error}; fetch it anew or leave it out") from error
    return members


def _row(parts: dict[str, Place], file: BinaryIO) -> Row | None:
    """A sample's row, or None without a caption."""
    texts = {}
    for kind in ("txt", "json"):
        if kind in parts:
            offset, size = parts[kind]
            texts[kind] = os.pread(file.fileno(), size, offset) if size <= _MAX_TEXT else b""
    found = next((kind for kind, text in texts.items() if _has_words(_caption(text, kind))), None)
    if found is None:
        return None
    image_id = json_object(texts["json"]).get("image_id") if "json" in texts else None
    identity = _hash(f"{type(image_id).__name__} {image_id}") if type(image_id) in _IDS else 0
    return Row(*parts["image"], *parts[found], found == "json", identity)


def _caption(content: bytes, kind: str) -> Any:
    """What a caption file says; None if it can't be read."""
    if kind == "json":
        return json_object(content).get("caption")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _has_words(caption: Any) -> bool:
    """Whether it is a text, or a list of texts, of which `clean_caption` leaves a word."""
    texts = caption if isinstance(caption, list) else [caption]
    if not all(isinstance(text, str) for text in texts):
        return False
    try:
        return any(clean_caption(text).encode("utf-8") for text in texts)
    except UnicodeEncodeError:  # half a character: no tokeniser takes that
        return False


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _tables(
    shards: Sequence[str], stamps: Sequence[tuple[int, int]], index_folder: str | Path | None
) -> list[NDArray[np.int64]]:
    """The shards' rows, from index files where these are up to date; others are read anew."""
    folder = Path(index_folder) if index_folder else cache_folder() / "shard-index"
    tables, left_out, first = [], 0, ""
    for shard, stamp in zip(shards, stamps, strict=True):
        key = f"{_hash(f'{_VERSION} {os.path.abspath(shard)} {stamp}') & LARGEST:x}"
        table, _ = cached(folder, key, partial(read_table, shard))
        damaged = f"{folder / key}.safetensors: damaged, delete it"
        with refusing(damaged, ValueError, KeyError, IndexError, TypeError):
            rows = np.asarray(table["rows"], np.int64).reshape(-1, len(Row._fields))
            begin, length = rows[:, [0, 2]], rows[:, [1, 3]]  # of pictures and texts
            most = np.minimum(stamp[0] - begin, [_MAX_IMAGE, _MAX_TEXT])
            inside = (begin >= tarfile.BLOCKSIZE) & (begin <= stamp[0]) & (length >= 0)
            if not (inside & (length <= most)).all():
                raise ValueError("its places are not in the shard")
            count = int(table["left_out"][0])
            if count and not left_out:
                first = f"the first is {table['example'].tobytes().decode()!r} of {shard}"
        tables.append(rows)
        left_out += count
    pairs = sum(map(len, tables))
    if left_out:
        told = f"{left_out} of {pairs + left_out} images are left out, without a word in <key>.txt"
        warnings.warn(f'{told} or "caption" of <key>.json; {first}', stacklevel=3)
    if not pairs:
        wanted = "expected <key>.jpg (.jpeg, .png, .webp) with <key>.txt or <key>.json"
        none = f"no pair in {len(shards)} shards, the first is {shards[0]}"
        raise DataCorruptError(f"{none}: {wanted}")
    return tables


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@lru_cache(maxsize=64)
def _opened(path: str, stamp: tuple[int, int]) -> BinaryIO:
    """A shard that must still have that stamp, else ShardChangedError. The last ones stay open:
    reads depend on no position, so forks may share them."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise ShardChangedError(f"{path} is gone; put it back and start again") from error
    if _stamp(os.fstat(file.fileno())) != stamp:
        file.close()
        raise ShardChangedError(f"{path} has changed since it was listed: start again")
    return file
