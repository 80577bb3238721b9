"""Batches of pictures with texts, from annotations in JSON.

Tasks derive from `ImageTextData` and say what an entry holds and which texts a batch has.
`PairData` is image-text pairs, for pre-training and retrieval.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.annotations import (
    Annotation,
    Annotations,
    Reading,
    read_annotations,
)
from shared.data.image_text.videos import FrameChoice
from shared.data.images import FileImages, Pixels, readable
from shared.data.loading.loader import EvaluationLoader, ResumableLoader, rank_and_world
from shared.data.loading.streams import Draws, Permutations, Rotation, Stream, StreamBatches
from shared.data.readers.files import (
    LARGEST,
    find_files,
    image_path,
    is_text,
    not_found,
    shortened,
)
from shared.data.readers.videos import decoder, read_frames
from shared.data.splits import seeded_subset
from shared.data.text.cleaning import TextRules, text_rules
from shared.data.text.wordpiece import WordPiece
from shared.data.views.interface import build_views
from shared.randomness import key_uniforms, sample_keys

ImageTextBatch = dict[str, Any]
Keys = NDArray[np.uint64]


# Arguments that no entry's fate depends on, by which index files are not told apart.
_OF_LOADING = {
    *("files", "rotating", "shards", "index_folder", "annotation_index", "references", "vocab"),
    *("augmentation", "batch_size", "eval_batch_size", "num_workers", "seed", "steps_per_epoch"),
    *("subset", "subset_seed", "cache_images", "draft", "image_mode", "max_corrupt", "window"),
    *("val_split", "test_split", "frames", "train_frames", "test_frames", "decoder"),
}


class TrainingSource(Protocol):
    """Where training samples come from; a sample is a number in range(len)."""

    def __len__(self) -> int: ...

    def stream(self, seed: int) -> Stream:
        """The order of the samples: one pass an epoch."""

    def group(self, index: int, *turn: int) -> list[Pixels] | None:
        """All pictures of a sample, or None if one is unreadable; of a video that is trained on
        `turn`, the pass over the set, says which frames."""

    def entry(self, index: int) -> Annotation:
        """A sample's annotation, with its number in the split as "index"."""


class EntryImages(FileImages):
    """Pictures of entries of P each: the p-th one of entry n is number n * P + p. `paths` gives the
    pictures' paths of an entry; `count` is the number of different pictures."""

    def __init__(self, paths: Callable[[int], list[str]], per_entry: int, count: int, **how: Any):
        super().__init__(truncated=True, **how)
        self.paths, self.per_entry, self.count = paths, per_entry, count

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        entry, place = divmod(index, self.per_entry)
        return self.paths(entry)[place]

    def key(self, index: int) -> str:
        return self.path(index)  # entries may share pictures

    def group(self, entry: int, *turn: int) -> list[Pixels] | None:
        """All pictures of an entry, or None if one is unreadable."""
        first = entry * self.per_entry
        pictures = [self.read(number) for number in range(first, first + self.per_entry)]
        found = [picture for picture in pictures if picture is not None]
        return found if len(found) == len(pictures) else None


class EntryFrames(EntryImages):
    """Videos, one an entry, each as the pictures of the frames that `choice` takes. A cache keeps
    them whole, since each pass shows other frames."""

    kind = "video"

    def __init__(
        self, paths: Callable[[int], list[str]], choice: FrameChoice, count: int, **how: Any
    ):
        super().__init__(paths, 1, count, **how)
        self.choice = choice

    def decode(self, index: int, *turn: int) -> Pixels:
        choose = self.choice.of(index, *turn)

        def every(count: int) -> Sequence[int]:
            choose(count)  # refuses a video that is too short
            return range(count)

        chosen = choose if self._cache is None else every
        return read_frames(self.path(index), chosen, self.choice.decoder)

    def group(self, entry: int, *turn: int) -> list[Pixels] | None:
        frames = self.read(entry, *turn)
        if frames is not None and self._cache is not None:
            frames = frames[self.choice.of(entry, *turn)(len(frames))]
        return None if frames is None else list(frames)


@dataclass(eq=False)
class AnnotatedSamples:
    """The entries that `members` (sorted numbers, (N,)) names, as a `TrainingSource`. `rotation`:
    of how many first samples all take part in each epoch, and where each of the groups that take
    turns ends."""

    annotations: Annotations
    members: NDArray[np.int64]
    images: EntryImages
    rotation: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def stream(self, seed: int) -> Stream:
        if self.rotation is not None:
            return Rotation(seed, *self.rotation)
        return Permutations(seed, len(self))

    def group(self, index: int, *turn: int) -> list[Pixels] | None:
        return self.images.group(int(self.members[index]), *turn)

    def entry(self, index: int) -> Annotation:
        number = int(self.members[index])
        return self.annotations[number] | {"index": number}


@dataclass(eq=False)
class ImageTextBatches:
    """Batches of a source of `data`: in training from plans of one stream, in evaluation from
    numbers."""

    data: "ImageTextData"
    source: TrainingSource
    split: str

    @cached_property
    def pool(self) -> NDArray[np.int64]:
        return np.arange(len(self.source))

    def __getitems__(self, plan: tuple[Draws] | NDArray[np.int64]) -> ImageTextBatch:
        data, frames, seed = self.data, self.data.hparams["frames"], self.data.hparams["seed"]
        draws = None if isinstance(plan, np.ndarray) else plan[0]
        wanted = plan if isinstance(plan, np.ndarray) else plan[0].positions
        pool = None if draws is None else self.pool
        passes = None if draws is None or frames is None else draws.passes
        groups, used = readable(wanted, pool, self.source.group, passes)
        if len(used) == 0:
            raise DataCorruptError(f"none of the {len(wanted)} images of a batch can be read")
        # The first picture of each entry, then the second one of each, and so on.
        pictures = [picture for place in zip(*groups, strict=True) for picture in place]
        entries = [self.source.entry(index) for index in used.tolist()]
        indices = np.array([entry["index"] for entry in entries], np.int64)
        if draws is None:
            images, text_keys = data.transform(pictures, "test"), None
        else:
            places = range(1, len(pictures) // len(used))
            # All frames of a video are changed alike, the pictures of an entry each in its own way.
            others = ("train" if frames else f"train {place}" for place in places)
            views = ["train", *others]
            keys = [sample_keys(seed, draws.passes, indices, view) for view in views]
            images = data.transform(pictures, "train", np.concatenate(keys))
            text_keys = sample_keys(seed, draws.passes, indices, "caption")
        if frames is not None:
            images = images.unflatten(0, (frames, len(used))).transpose(0, 1)
        texts = data.texts(entries, text_keys, self.split)
        return {"images": images, "indices": torch.from_numpy(indices), **texts}


class ImageTextData(pl.LightningDataModule):
    """Training and evaluation batches of annotated pictures.

    Batch: `images` (B, 3, S, S) float32, normalised; `indices` (B,) int64, the entries' numbers in
    their split; and what `texts` adds. With P pictures an entry `images` is (P * B, 3, S, S), all
    first pictures first. Where entries are videos it is (B, F, 3, S, S), of F frames each.

    A picture that can't be read is warned of and counted; in training the next readable entry
    stands in for its entry, in evaluation the entry is left out.

    Args:
        files: split -> annotation file or files, see `read_annotations`.
        image_root: folder that the pictures' paths are relative to and, unless `allow_outside`, do
            not leave; null for that of the annotation file; or data set -> folder, where entries
            name their `dataset`.
        augmentation: `_target_` of the views and their arguments; "train" and "test" are used.
        batch_size: total over all ranks; `eval_batch_size` is of one rank.
        steps_per_epoch: batches per epoch, drawn from concatenated passes; None makes an epoch one
            pass of the training set, without the partial batch at its end.
        subset: train on that many entries, drawn with `subset_seed`; None for all.
        image_mode: "RGBA" gives the views pictures with their alpha channel.
        draft: side in px that JPEGs are decoded to at least, see `read_image`; null decodes all.
        annotation_index: folder for index files of the training annotations, which all ranks and
            worker processes share (see `shared.data.image_text.annotations`); null keeps the
            annotations in the memory of each rank.
        frames: F, where entries are videos; null: they are pictures.
        train_frames, test_frames, decoder: see `FrameChoice`.
        text_rules: whose cleaning and special tokens the texts get, "albef", "blip" or "alpro", see
            `shared.data.text.cleaning`.
        val_split, test_split: of `files`; None goes without.
    """

    required: ClassVar[Mapping[str, Any]] = {"image": str}  # keys of every entry and their types

    def __init__(
        self,
        files: Mapping[str, str | Sequence[str]],
        image_root: str | Mapping[str, str] | None,
        vocab: str,
        augmentation: Mapping[str, Any],
        batch_size: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        subset: int | None = None,
        subset_seed: int = 0,
        cache_images: bool = False,
        image_mode: str = "RGB",
        allow_outside: bool = False,
        max_corrupt: float = 0.01,
        val_split: str | None = "val",
        test_split: str | None = "test",
        text_rules: str = "albef",
        draft: int | None = None,
        annotation_index: str | None = None,
        frames: int | None = None,
        train_frames: str = "rand",
        test_frames: str = "uniform",
        decoder: str = "auto",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # those of a subclass as well
        self._h: Any = self.hparams
        rules = train_frames, test_frames, seed, decoder
        self.choice = None if frames is None else FrameChoice(frames, *rules)
        self.transform = build_views(augmentation)
        self._entries: dict[str, Annotations] = {}
        self._evaluated: dict[str, AnnotatedSamples] = {}

    def image_names(self, entry: Annotation) -> list[str]:
        """The paths of an entry's pictures, relative to its root; equally many for all entries."""
        return [entry["image"]]

    def root_of(self, entry: Annotation, file: Path) -> str:
        """The folder that the pictures of an entry of `file` are relative to."""
        root, name = self._h.image_root, entry.get("dataset")
        if root is None:
            return str(file.parent)
        if isinstance(root, str):
            return root
        if not isinstance(name, str) or name not in root:
            known = ", ".join(root)
            raise DataCorruptError(f"`dataset` is {shortened(name)}, but image_root has {known}")
        return root[name]

    def samples_among(self, split: str, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which entries of a split (sorted numbers) are samples; others add to their texts."""
        return members

    def problem(self, entry: Annotation, split: str) -> str | None:
        """Why an entry can't be used: training leaves it out with a warning, evaluation refuses."""
        return None

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        """What a batch holds besides pictures and indices. `keys` (B,) are random keys in
        training, None in evaluation; entries have their number in `split` as "index"."""
        return {}

    @property
    def rules(self) -> TextRules:
        return text_rules(self._h.text_rules)

    @cached_property
    def tokenizer(self) -> WordPiece:
        return WordPiece(self._h.vocab, self.rules.added, self.rules.closed)

    def files_of(self, split: str) -> tuple[list[str], list[str]]:
        """The annotation files of a split, and behind them those that take turns in training, one
        an epoch. ValueError where `files` doesn't name the split."""
        files = {name: given for name, given in self._h.files.items() if given}
        if split not in files:
            known = ", ".join(files) or "none"
            raise ValueError(f"no annotations of split {split!r}: `files` has {known}")
        given = files[split]
        return [given] if isinstance(given, str) else list(given), []

    def entries(self, split: str) -> Annotations:
        """The annotations of a split, read once."""
        if split not in self._entries:
            h = self._h
            # What evaluation makes of its few entries may depend on other files as well.
            folder = h.annotation_index if split == "train" else None
            settings = {k: str(v) for k, v in h.items() if k not in _OF_LOADING}
            settings["class"] = f"{type(self).__module__}.{type(self).__qualname__}"
            how = Reading(self.required, partial(self._pictures, split), folder, settings)
            always, in_turn = self.files_of(split)
            self._entries[split] = read_annotations([*always, *in_turn], how)
        return self._entries[split]

    @cached_property
    def source(self) -> TrainingSource:
        """The training samples: entries without a problem, after `subset`."""
        entries, h = self.entries("train"), self._h
        bad = entries.bad
        members = np.flatnonzero(~bad)
        if bad.any():
            first = int(bad.argmax())
            problem = self.problem(entries[first], "train")
            left_out = f"{bad.sum()} of {len(entries)} training entries are left out; the first is"
            warnings.warn(f"{left_out} {entries.where(first)}: {problem}", stacklevel=2)
        if not len(members):
            told = "no training entry can be used; see the warning before"
            raise DataCorruptError(f"{entries.file(0)}: {told}")
        members = self.samples_among("train", members)
        chosen = seeded_subset(len(members), h.subset, h.subset_seed)
        samples = self._samples("train", members[chosen])
        always, in_turn = self.files_of("train")
        if in_turn:
            if h.subset is not None or h.steps_per_epoch is not None:
                raise ValueError("files in turn need subset and steps_per_epoch to be null")
            limits = np.searchsorted(samples.members, entries.starts[len(always) :])
            samples.rotation = int(limits[0]), limits[1:]
        return samples

    def evaluated(self, split: str) -> AnnotatedSamples:
        """All entries of a split; DataCorruptError if one has a problem."""
        if split not in self._evaluated:
            entries = self.entries(split)
            if entries.bad.any():
                number = int(entries.bad.argmax())
                problem = self.problem(entries[number], split)
                raise DataCorruptError(f"{entries.where(number)}: {problem}")
            members = self.samples_among(split, np.arange(len(entries)))
            self._evaluated[split] = self._samples(split, members)
        return self._evaluated[split]

    def setup(self, stage: str) -> None:
        """Read vocabulary and annotations and check sizes: bad input is refused before training."""
        h = self._h
        if h.frames is not None:
            decoder(h.decoder)
        _ = self.tokenizer
        if stage == "fit":
            self.schedule()
        split = h.test_split if stage == "test" else h.val_split
        if split is not None:
            self.evaluated(split)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.training_batches(), self.schedule(), self._h.num_workers)

    def val_dataloader(self) -> EvaluationLoader | list:
        return self._evaluation(self._h.val_split)

    def test_dataloader(self) -> EvaluationLoader | list:
        return self._evaluation(self._h.test_split)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes that aren't forked get a copy, which needs no trainer."""
        return self.__dict__ | {"trainer": None}

    def _evaluation(self, split: str | None) -> EvaluationLoader | list:
        if split is None:
            return []
        h, samples = self._h, self.evaluated(split)
        batches = ImageTextBatches(self, samples, split)
        sizes = len(samples), h.eval_batch_size, h.num_workers
        return EvaluationLoader(batches, *sizes, *rank_and_world(self))

    def training_batches(self) -> ImageTextBatches:
        """What makes training batches of the plans of `schedule`."""
        return ImageTextBatches(self, self.source, "train")

    def schedule(self) -> StreamBatches:
        """This rank's training batches of each epoch; ValueError if there can be none."""
        h, size = self._h, len(self.source)
        if h.steps_per_epoch is None:
            stream = self.source.stream(h.seed)
        elif h.batch_size > size:
            told = f"batch_size={h.batch_size} is larger than the training set ({size} entries)"
            raise ValueError(f"{told}: lower it or use more data")
        else:
            stream = Permutations(h.seed, size, h.batch_size * h.steps_per_epoch)
        return StreamBatches([stream], [h.batch_size], True, *rank_and_world(self))

    def _pictures(self, split: str, entry: Annotation, file: Path) -> list[str] | None:
        return self._paths(entry, file) if self.problem(entry, split) is None else None

    def _paths(self, entry: Annotation, file: Path) -> list[str]:
        """Where an entry's pictures are; DataCorruptError if outside of their root."""
        root = self.root_of(entry, file)
        return [image_path(root, name, self._h.allow_outside) for name in self.image_names(entry)]

    def _paths_of(self, split: str, number: int) -> list[str]:
        entries = self.entries(split)
        return self._paths(entries[number], entries.file(number))

    def _samples(self, split: str, members: NDArray[np.int64]) -> AnnotatedSamples:
        entries, h, paths = self.entries(split), self._h, partial(self._paths_of, split)
        # Of some evenly spaced entries no picture is there if the root is wrong.
        some = members[np.unique(np.linspace(0, len(members) - 1, 64).astype(int))]
        looked_for = list(dict.fromkeys(path for number in some for path in paths(int(number))))
        if not any(Path(path).is_file() for path in looked_for):
            kind = "images" if h.frames is None else "videos"
            missing = f"annotations of split {split!r}: none of {len(looked_for)} {kind} is there"
            raise DataNotFoundError(f"{not_found(Path(looked_for[0]))} ({missing})")
        per_entry = len(paths(int(members[0])))
        count = min(entries.pictures, per_entry * len(members))
        how = {"max_corrupt": h.max_corrupt, "mode": h.image_mode, "cache": h.cache_images}
        how["draft"] = h.draft
        if self.choice is None:
            images = EntryImages(paths, per_entry, count, **how)
        else:
            images = EntryFrames(paths, self.choice, count, **how)
        return AnnotatedSamples(entries, members, images)


class PairData(ImageTextData):
    """Image-text pairs: entries {image, caption: text or list of texts, image_id?}.

    Training draws one of an entry's captions at each access. Training batch: `images`, `indices`,
    `input_ids`, `attention_mask` (B, L) int64, `image_ids` (B,) int64: equal for captions of one
    image. Evaluation batch: `images` (B, 3, S, S), `indices`, and all captions of these images in
    order, `input_ids`, `attention_mask` (T, L) and `text_image` (T,), the entry's number; where
    entries have `hard`, the first caption of another one that is easily taken for it, also
    `hard_text` (T,), that other entry's number.

    Captions are cleaned as `text_rules` say and cut to `max_words`, and to `max_text_tokens` in
    "train" and "eval", [CLS] included; null keeps them whole. Training batches are padded to their
    longest text, evaluation to the limit (docs/papers/albef.md, section 4.3). Training entries
    without a word in any caption are left out. `rotating`: paths or patterns of more training
    files, of which one takes part in each epoch, the e-th of them in sorted order modulo their
    number (BLIP's rule for LAION; docs/papers/blip.md, section 6).
    """

    required: ClassVar[Mapping[str, Any]] = {"image": str, "caption": str | list[str]}

    def __init__(
        self,
        max_text_tokens: Mapping[str, int | None] | None = None,
        max_words: int = 30,
        rotating: str | Sequence[str] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        limits: dict[str, int | None] = {"train": 25, "eval": 30}
        self.token_limits = limits | dict(max_text_tokens or {})
        self._hard: dict[str, NDArray[np.int64]] = {}
        if len(self.token_limits) > len(limits):
            raise ValueError(f"max_text_tokens has keys train and eval, got {max_text_tokens}")

    def files_of(self, split: str) -> tuple[list[str], list[str]]:
        given = self._h.rotating if split == "train" else None
        if given is None:
            return super().files_of(split)
        in_turn = find_files(given, "file of annotations", "DIR/*.json")
        return super().files_of(split)[0] if self._h.files.get(split) else [], in_turn

    def hard_entries(self, split: str) -> NDArray[np.int64]:
        """(N,) the entry whose first caption is an entry's `hard`; DataCorruptError if none is."""
        if split not in self._hard:
            entries = self.entries(split)
            numbers = {self.captions(entry)[0]: n for n, entry in enumerate(entries)}
            clean = self.rules.clean_caption
            hard = (clean(e.get("hard", ""), self._h.max_words) for e in entries)
            found = [numbers.get(text, -1) for text in hard]
            if -1 in found:
                where = entries.where(found.index(-1))
                raise DataCorruptError(f"{where}: its `hard` is no other entry's first caption")
            self._hard[split] = np.array(found, np.int64)
        return self._hard[split]

    def problem(self, entry: Annotation, split: str) -> str | None:
        number = entry.get("image_id")
        if number is not None and type(number) not in (int, str):
            return f"image_id is {shortened(number)}, expected a number or a text"
        if not is_text(entry.get("hard", "")):
            return f"hard is {shortened(entry['hard'])}, expected a text"
        return None if self.captions(entry) else "it has no caption with a word, hence no positive"

    def captions(self, entry: Annotation) -> list[str]:
        """An entry's captions, cleaned, without empty ones."""
        given = entry["caption"]
        texts = [given] if isinstance(given, str) else given
        cleaned = (self.rules.clean_caption(text, self._h.max_words) for text in texts)
        return [text for text in cleaned if text]

    def texts(self, entries: Sequence[Annotation], keys: Keys | None, split: str) -> ImageTextBatch:
        captions = [self.captions(entry) for entry in entries]
        indices = np.array([entry["index"] for entry in entries])
        if keys is None:
            limit = self.token_limits["eval"]
            flat = [text for texts in captions for text in texts]
            ids, mask = self.tokenizer.batch(flat, limit, pad_to=limit)
            owners = np.repeat(indices, [len(texts) for texts in captions])
            extra = {"text_image": torch.from_numpy(owners)}
            if "hard" in entries[0]:
                extra["hard_text"] = torch.from_numpy(self.hard_entries(split)[owners])
        else:
            draws = key_uniforms(keys, 1)[:, 0]
            chosen = [c[int(u * len(c))] for c, u in zip(captions, draws, strict=True)]
            ids, mask = self.tokenizer.batch(chosen, self.token_limits["train"])
            extra = {"image_ids": torch.tensor([image_id(entry) for entry in entries])}
        return {"input_ids": ids, "attention_mask": mask, **extra}


def image_id(entry: Annotation) -> int:
    """A number of an entry's image, a hash, never negative: entries are of one image if they have
    the same `image_id`, or none and the same path (of a video, the same name)."""
    number, path = entry.get("image_id"), entry.get("image", entry.get("clip_name"))
    told = f"path {path}" if number is None else f"{type(number).__name__} {number}"
    digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & LARGEST
