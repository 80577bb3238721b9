"""Every reader of a data set's files, with every damage and with attacks of its own.

A reader ends in its own errors, which name the file in one line, or returns; it never hangs, starts
a process or writes elsewhere.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from tokenizers import ByteLevelBPETokenizer

from benchmarks.miniatures.synthetic import idx_bytes
from benchmarks.miniatures.synthetic_pairs import pairs
from methods.cascode.encoders import text_config
from methods.cascode.readers import Reader as CodeReader
from methods.cascode.tokenizer import CodeTokenizer
from methods.mopro.data import WebData
from shared.checkpoints.reading import CheckpointError
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.fetching import _check_content
from shared.data.image_text.annotations import read_annotations
from shared.data.image_text.labelled_sentences import EntailmentData, NLVRData
from shared.data.image_text.pairs import PairData
from shared.data.image_text.referring import References, ReferringData
from shared.data.image_text.shards import ShardSamples
from shared.data.image_text.vqa import VQAData
from shared.data.images import ArrayImages
from shared.data.loading.feature_cache import cache_key, cached
from shared.data.readers import small_images as readers
from shared.data.readers.folders import archive, image_folder, list_file, scan
from shared.data.readers.imagenet import imagenet, imagenet_fraction, split_file
from shared.data.readers.long_tail import imagenet_lt, inaturalist2018, places_lt
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.data.readers.voc_places import PLACES_IMAGES, VOC_CLASSES, places205, voc2007
from shared.data.readers.webvision import webvision
from shared.data.text.wordpiece import WordPiece
from tests.hostile import damages
from tests.hostile.tripwire import watched

DATA_ERRORS = (DataNotFoundError, DataCorruptError)
ALL = frozenset(damages.REFUSED)


@dataclass(frozen=True)
class Reader:
    """A reader of a file.

    Attributes:
        build: writes a valid input into a folder and returns the file that gets damaged.
        read: reads the folder.
        refuses: its own errors, no subclass of them.
        handles: damages of `damages.REFUSED` that it may handle instead: a cache is made anew, and
            any bytes are pixels.
    """

    name: str
    build: Callable[[Path], Path]
    read: Callable[[Path], object]
    refuses: tuple[type[Exception], ...] = DATA_ERRORS
    handles: frozenset[str] = frozenset()


def picture(path: Path, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, kind)
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def content(path: Path, value: Any) -> Path:
    return text(path, json.dumps(value))


# --- pictures ----------------------------------------------------------------------------------


def listed(name: str, *lines: str, image: str = "a.png") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        picture(folder / image)
        text(folder / "list.txt", "a.png 0")
        return text(folder / name, *lines)

    return build


def npz(folder: Path) -> Path:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    np.savez(folder / "a.npz", images=images, labels=[0, 1], class_names=["x", "y"])
    return folder / "a.npz"


def idx(name: str, packed: bool) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        labels = np.arange(10, dtype=np.uint8)
        images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
        for stem, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            path = folder / f"train-{stem}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
        return folder / f"train-{name}{'.gz' if packed else ''}"

    return build


def cifar(name: str) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        folder = root / name.split("/")[0]
        folder.mkdir()
        rows = np.arange(10 * 3072).reshape(10, 3072).astype(np.uint8)
        names = [f"c{i}".encode() for i in range(10)]
        for file, value in {
            "test_batch": {b"data": rows, b"labels": list(range(10))},
            "batches.meta": {b"label_names": names},
            "test": {b"data": rows, b"fine_labels": list(range(10))},
            "meta": {b"fine_label_names": names},
        }.items():
            (folder / file).write_bytes(pickle.dumps(value, protocol=2))
        return root / name

    return build


def stl(name: str) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        folder = root / "stl10_binary"
        folder.mkdir()
        np.arange(10 * 27648).astype(np.uint8).tofile(folder / "test_X.bin")
        np.arange(1, 11, dtype=np.uint8).tofile(folder / "test_y.bin")
        text(folder / "class_names.txt", *"abcdefghij")
        text(folder / "fold_indices.txt", "0 1", "1 2")
        return folder / name

    return build


def stl_folds(root: Path) -> object:
    images = ArrayImages(np.zeros((5, 2, 2), np.uint8), np.zeros(5), ["a"], "here")
    return readers.stl10_fold_split(images, np.arange(5), 2, 0, root)


def mat(folder: Path) -> Path:
    pixels = np.arange(32 * 32 * 3 * 10).reshape(32, 32, 3, 10).astype(np.uint8)
    path = folder / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
    return path


def voc(name: str) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        folder = root / "VOCdevkit" / "VOC2007"
        picture(folder / "JPEGImages" / "000001.jpg")
        for kind in VOC_CLASSES:
            text(folder / "ImageSets" / "Main" / f"{kind}_test.txt", "000001  1")
        return folder / "ImageSets" / "Main" / f"{name}_test.txt"

    return build


def places(root: Path) -> Path:
    picture(root / PLACES_IMAGES / "a.jpg")
    return text(root / "trainvalsplit_places205" / "val_places205.csv", "a.jpg 0")


def inaturalist(root: Path, **changes: Any) -> Path:
    picture(root / "a.jpg")
    value = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 0}],
        "categories": [{"id": 0, "name": "moss"}],
    }
    return content(root / "val2018.json", value | changes)


def folders(root: Path) -> Path:
    for name in ("n1/1.png", "n1/2.png", "n2/1.png", "n2/2.png"):
        picture(root / "train" / name)
    return root


def split(root: Path) -> Path:
    split_file(imagenet(folders(root), "train"), np.arange(4), 2, 0, root / "split.json")
    return root / "split.json"


def fraction(root: Path) -> Path:
    imagenet_fraction(folders(root), "train", 0.5, root / "part.txt")
    return root / "part.txt"


def web(name: str) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        info = root / "info"
        for source in ("google", "flickr"):
            picture(root / source / "a.jpg")
            text(info / f"train_filelist_{source}.txt", f"{source}/a.jpg 0")
        picture(root / "val_images_256" / "v.jpg")
        text(info / "val_filelist.txt", "v.jpg 0")
        text(info / "class_names.txt", "tench")
        content(root / "clean.json", {"images": ["google/a.jpg"], "labels": [0]})
        content(root / "truth.json", {f"{s}/a.jpg": {"label": 0} for s in ("google", "flickr")})
        return root / name

    return build


def truth(root: Path) -> object:
    data = object.__new__(WebData)
    images = webvision(root, "train", num_classes=1)
    data._h = type("h", (), {"truth": str(root / "truth.json"), "dataset": {"root": str(root)}})()
    data.images = lambda split: images  # type: ignore[method-assign, assignment, return-value]
    return WebData.true_labels.func(data)  # type: ignore[attr-defined]


# --- pictures with texts -----------------------------------------------------------------------

VIEWS = {
    "_target_": "shared.data.views.recipes.RecipeViews",
    "size": 8,
    "test_resize": None,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "recipes": {"train": [{"op": "resize"}]},
}


def made_pairs(name: str) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        pairs(root, train=2, test=2, image_size=16)
        return root / name

    return build


def module(
    kind: type, train: str, val: str, images: str = "", **more: str
) -> Callable[[Path], object]:
    def read(root: Path) -> object:
        data = kind(
            files={"train": f"{root}/{train}.json", "val": f"{root}/{val}.json"},
            image_root=f"{root}/{images}",
            vocab=f"{root}/vocab.txt",
            augmentation=VIEWS,
            batch_size=1,
            max_corrupt=1.0,
            test_split=None,
            **{key: f"{root}/{value}" for key, value in more.items()},
        )
        data.setup("fit")
        return data.source.entries(np.arange(len(data.source))), data.evaluated("val")

    return read


vqa = module(VQAData, "vqa_train", "vqa_test", answer_list="answer_list.json")
nlvr = module(NLVRData, "nlvr_train", "nlvr_dev")
entailment = module(EntailmentData, "ve_train", "ve_dev", "images")
retrieval = module(PairData, "pairs_train", "pairs_val")
grounding = module(
    ReferringData,
    "refcoco+_train",
    "refcoco+_val",
    refs="refcoco+/refs(unc).p",
    instances="refcoco+/instances.json",
    proposals="dets.json",
)


def jsonl(folder: Path) -> Path:
    return text(folder / "a.jsonl", '{"image": "a.png"}', '{"image": "b.png"}')


def samples(folder: Path) -> object:
    found = ShardSamples(folder / "a.tar", 1.0, index_folder=folder / "index")
    numbers = np.arange(len(found))
    return found.take(numbers), found.entries(numbers)


def tar(folder: Path, *more: tarfile.TarInfo) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, value in (("0.png", buffer.getvalue()), ("0.txt", b"a word"), ("0.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
        for member in more:
            archive.addfile(member)
    return folder / "a.tar"


def indexed(folder: Path) -> Path:
    samples(tar(folder).parent)
    return folder / "a.tar.index.npz"


# --- texts -------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]


def words(folder: Path) -> Path:
    return text(folder / "vocab.txt", *WORDS)


def settings(folder: Path) -> Path:
    words(folder)
    return content(folder / "tokenizer_config.json", {"do_lower_case": True})


def byte_pairs(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        tokenizer = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        tokenizer.train_from_iterator(["def f ( x )"], vocab_size=265, special_tokens=special)
        if name == "tokenizer.json":
            tokenizer.save(str(folder / name))
        else:
            tokenizer.save_model(str(folder))
        return folder / name

    return build


def code(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        entries = [
            {"url": f"u{i}", "docstring_tokens": ["sort"], "code_tokens": ["f", "x"]}
            for i in range(3)
        ]
        lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        (folder / "a.jsonl").write_bytes(lines)
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        content(folder / "a.json", entries)
        content(folder / "a.txt", {"def f": 1, "def g": 2})
        return folder / name

    return build


def code_texts(name: str) -> Callable[[Path], object]:
    kinds = ["code"] if name == "a.txt" else ["query", "code"]
    return lambda folder: list(CodeReader([folder / name], kinds))  # type: ignore[arg-type]


def arrays() -> dict[str, Any]:
    return {"ids": np.arange(7)}


def kept(folder: Path) -> Path:
    cached(folder, "key", arrays)
    return folder / "key.npz"


def config(folder: Path, **changes: Any) -> Path:
    value = {
        "model_type": "bert",
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    return content(folder / "config.json", value | changes)


MADE_ANEW = frozenset({"missing", "a link to nothing", "a link to itself"})
PIXELS = frozenset({"zeros", "noise"})
RAW = (*DATA_ERRORS, ValueError)  # a wrong number of images, as their messages say

READERS = [
    Reader("image list", listed("l.txt", "a.png 0"), lambda f: list_file(f, "train", "l.txt")),
    Reader(
        "class names of an image list",
        listed("names.txt", "red"),
        lambda f: list_file(f, "train", "list.txt", class_names="names.txt"),
    ),
    Reader(
        "picture of a folder",
        lambda f: picture(picture(f / "train" / "red" / "b.png").with_name("a.png")),
        lambda f: image_folder(f, "train", in_memory=True),
        handles=frozenset({"missing", "a folder"}),
    ),
    Reader("array archive", npz, lambda f: archive(f, "train", "a.npz")),
    *(
        Reader(f"Fashion-MNIST {name} {kind}", idx(name, packed), fashion)
        for kind, packed in (("plain", False), ("packed", True))
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
        for fashion in [lambda f: readers.fashion_mnist(f, "train")]
    ),
    *(
        Reader(f"CIFAR-10 {name}", cifar(name), lambda f: readers.cifar10(f, "test"))
        for name in ("cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta")
    ),
    *(
        Reader(f"CIFAR-100 {name}", cifar(name), lambda f: readers.cifar100(f, "test"))
        for name in ("cifar-100-python/test", "cifar-100-python/meta")
    ),
    Reader("SVHN", mat, lambda f: readers.svhn(f, "test")),
    *(
        Reader(f"STL-10 {name}", stl(name), lambda f: readers.stl10(f, "test"), handles=handles)
        for name, handles in (
            ("test_X.bin", PIXELS),
            ("test_y.bin", frozenset()),
            ("class_names.txt", frozenset()),
        )
    ),
    Reader("STL-10 folds", stl("fold_indices.txt"), stl_folds, RAW),
    Reader(
        "ImageNet-LT list",
        listed("ImageNet_LT_val.txt", "a.png 0"),
        lambda f: imagenet_lt(f, "val"),
    ),
    Reader("Places-LT list", listed("Places_LT_val.txt", "a.png 0"), lambda f: places_lt(f, "val")),
    Reader("iNaturalist", inaturalist, lambda f: inaturalist2018(f, "val")),
    Reader("VOC2007 list", voc("aeroplane"), lambda f: voc2007(f, "test")),
    Reader("VOC2007 last list", voc("tvmonitor"), lambda f: voc2007(f, "test")),
    Reader("Places205 list", places, lambda f: places205(f, "val")),
    Reader(
        "ImageNet split",
        split,
        lambda f: split_file(imagenet(f, "train"), np.arange(4), 2, 0, f / "split.json"),
        RAW,
        MADE_ANEW,
    ),
    Reader(
        "ImageNet fraction",
        fraction,
        lambda f: imagenet_fraction(f, "train", 0.5, f / "part.txt"),
        RAW,
        MADE_ANEW,
    ),
    *(
        Reader(f"WebVision {name}", web(name), reading, handles=handles)
        for name, reading, handles in (
            ("info/train_filelist_google.txt", lambda f: webvision(f, "train", 1), frozenset()),
            ("info/val_filelist.txt", lambda f: webvision(f, "val", 1), frozenset()),
            ("info/class_names.txt", lambda f: webvision(f, "val", 1), frozenset({"missing"})),
            (
                "clean.json",
                lambda f: webvision(f, "train", 1, cleaned=f / "clean.json"),
                frozenset(),
            ),
        )
    ),
    Reader("MoPro's truth", web("truth.json"), truth),
    Reader("annotations by line", jsonl, lambda f: read_annotations(f / "a.jsonl", {"image": str})),
    *(
        Reader(f"{title} {name}", made_pairs(name), reading)
        for title, reading, names in (
            ("pairs", retrieval, ("pairs_train.json", "pairs_val.json", "vocab.txt")),
            ("VQA", vqa, ("vqa_train.json", "vqa_test.json", "answer_list.json")),
            ("NLVR2", nlvr, ("nlvr_train.json", "nlvr_dev.json")),
            ("SNLI-VE", entailment, ("ve_train.json", "ve_dev.json")),
            (
                "RefCOCO+",
                grounding,
                (
                    "refcoco+_train.json",
                    "refcoco+_val.json",
                    "dets.json",
                    "refcoco+/instances.json",
                    "refcoco+/refs(unc).p",
                ),
            ),
        )
        for name in names
    ),
    Reader("shard", tar, samples),
    Reader("index of a shard", indexed, samples, handles=ALL),
    Reader("WordPiece", words, lambda f: WordPiece(f / "vocab.txt").batch(["a dog"])),
    *(
        Reader(f"code tokenizer {build.__name__} {name}", build, CodeTokenizer, handles=handles)
        for name, build, handles in (
            ("vocab.json", byte_pairs("vocab.json"), frozenset()),
            ("merges.txt", byte_pairs("merges.txt"), frozenset()),
            ("tokenizer.json", byte_pairs("tokenizer.json"), frozenset()),
            ("vocab.txt", words, frozenset()),
            ("settings", settings, frozenset({"missing"})),
        )
    ),
    *(
        Reader(f"code {name}", code(name), code_texts(name))
        for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.txt")
    ),
    Reader("feature cache", kept, lambda f: cached(f, "key", arrays), handles=ALL),
    Reader(
        "files of a feature cache",
        jsonl,
        lambda f: cache_key([f / "a.jsonl"]),
        handles=frozenset({"empty", "zeros", "noise"}),
    ),
    Reader(
        "checksum of a source",
        idx("images-idx3-ubyte", True),
        lambda f: _check_content(f / "train-images-idx3-ubyte.gz", ""),
    ),
    Reader("config of an encoder", config, text_config, (CheckpointError,)),
]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], tuple[Path, Path]]:
    """The valid input of a reader, made once: its folder and the file's place there."""
    made: dict[str, tuple[Path, Path]] = {}

    def find(reader: Reader) -> tuple[Path, Path]:
        if reader.name not in made:
            folder = tmp_path_factory.mktemp("valid")
            made[reader.name] = folder, reader.build(folder).relative_to(folder)
        return made[reader.name]

    return find


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))


def outcome(folder: Path, read: Callable[[Path], object]) -> Exception | None:
    """The error that reading ends in, if any; nothing else may happen."""
    begun = time.monotonic()
    with warnings.catch_warnings(), watched(folder, seconds=10) as watch:
        warnings.simplefilter("ignore")
        error = None
        try:
            read(folder)
        except Exception as caught:
            error = caught
    assert time.monotonic() - begun < 9  # a library may have swallowed the alarm
    assert not watch.processes
    assert set(watch.outside) <= {"/dev/zero"}  # where a link led that was replaced
    assert error is None or "\n" not in str(error)
    return error


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_whole_file_is_read(reader: Reader, valid: Any, tmp_path: Path) -> None:
    shutil.copytree(valid(reader)[0], tmp_path / "d", copy_function=os.link)
    error = outcome(tmp_path / "d", reader.read)
    if reader.name != "checksum of a source":
        assert error is None, repr(error)


@pytest.mark.parametrize("damage", damages.DAMAGES)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_refused(reader: Reader, damage: str, valid: Any, tmp_path: Path) -> None:
    source, place = valid(reader)
    folder = tmp_path / "d"
    shutil.copytree(source, folder, copy_function=os.link)
    (folder / place).unlink()
    shutil.copy2(source / place, folder / place)
    damages.DAMAGES[damage](folder / place)
    error = outcome(folder, reader.read)
    if error is None:
        assert damage in damages.TOLERATED or damage in reader.handles
    else:
        assert type(error) in reader.refuses, repr(error)
        assert str(folder) in str(error)
        assert damage in damages.TOLERATED or place.name in str(error)


# --- attacks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """What a stranger puts into a folder, and what the reader says to it; None: it just reads."""

    name: str
    put: Callable[[Path], object]
    read: Callable[[Path], object]
    message: str | None


def pickled(value: Any, protocol: int = 4) -> Callable[[Path], object]:
    if not isinstance(value, bytes):
        value = pickle.dumps(value, protocol)
    return lambda folder: (folder / "p").write_bytes(value)


class Call:
    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def shared_references(kind: type, levels: int = 45) -> Any:
    value = kind([0])
    for _ in range(levels):
        value = kind([value, value])
    return value


TUPLES = b"N\x85" + b"2\x86" * 45  # each of twice the one before


def deep(levels: int = 2000) -> bytes:
    return b"\x80\x04" + b"]" * levels + b"a" * (levels - 1) + b"."


def itself() -> list:
    value: list = []
    value.append(value)
    return value


def zipped(member: bytes, packed: bool = False) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        npz(folder)
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(folder / "a.npz", "w", kind) as archive:
            archive.writestr("images.npy", member)

    return put


def npy(header: str, values: bytes = b"") -> bytes:
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + f"{header}\n".encode() + values
    )


def saved(**changes: Any) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        value = {
            "images": np.zeros((2, 4, 4), np.uint8),
            "labels": [0, 1],
            "class_names": ["x", "y"],
        }
        np.savez(folder / "a.npz", **value | changes)

    return put


def bomb(name: str, unit: bytes = bytes(1 << 17), end: bytes = b"") -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(gzip.compress(unit) * 8 + gzip.compress(end))

    return put


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


def long_names(folder: Path) -> None:
    """Each header says that the next one is a longer name."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 1
    block = info.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    (folder / "a.tar").write_bytes(block * 3000 + bytes(1024))


def lying_index(**changes: Any) -> Callable[[Path], object]:
    """An index of the right shard with rows of its own."""

    def put(folder: Path) -> None:
        path = indexed(folder)
        with np.load(path) as whole:
            arrays = dict(whole)
        for name, value in changes.items():
            arrays["rows"][name] = value
        np.savez(path, **arrays)

    return put


def edited(build: Callable[[Path], Path], change: Callable[[Any], object]) -> Callable:
    def put(folder: Path) -> None:
        path = build(folder)
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return put


def references(root: Path) -> object:
    files = ("refcoco+/refs(unc).p", "refcoco+/instances.json", "dets.json")
    found = References(*(root / name for name in files))
    return found[0]


def circles(root: Path) -> None:
    for folder in (folders(root) / "train" / "n1", root / "train" / "n1" / "deeper"):
        folder.mkdir(exist_ok=True)
        for name in ("one", "two", "three"):
            (folder / name).symlink_to("/" if name == "three" and folder.name == "" else ".")
            (folder / f"up {name}").symlink_to("..")


def circle_count(root: Path) -> None:
    assert len(scan(root / "train", ["n1"])[0]) == 4  # with the two of n2, which a link leads to


def inat(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: inaturalist(folder, **changes)


def label(value: Any) -> Callable[[Path], object]:
    return inat(annotations=[{"image_id": 1, "category_id": value}])


def plain(folder: Path) -> object:
    return read_plain_pickle(folder / "p")


def batch(folder: Path) -> object:
    return readers.read_pickle(folder / "p")


def of_archive(folder: Path) -> object:
    return archive(folder, "train", "a.npz")


def of_clean(folder: Path) -> object:
    return webvision(folder, "train", 1, cleaned=folder / "clean.json")


def of_inat(folder: Path) -> object:
    return inaturalist2018(folder, "val")


def box(value: Any) -> Callable:
    return edited(
        made_pairs("refcoco+/instances.json"), lambda v: v["annotations"][0].update(bbox=value)
    )


def size(value: Any) -> Callable:
    return edited(
        made_pairs("refcoco+/instances.json"), lambda v: v["images"][0].update(height=value)
    )


def pair(**changes: Any) -> Callable:
    return edited(made_pairs("pairs_val.json"), lambda v: v[0].update(changes))


ATTACKS = [
    Attack("a pickle that runs a command", pickled([Call(os.system, "true")]), plain, "system"),
    Attack("one among arrays", pickled({"data": Call(os.system, "true")}), batch, "system"),
    Attack("a pickle that evaluates", pickled({"data": Call(eval, "1")}), batch, "eval"),
    Attack("a list of 2^45 items", pickled(shared_references(list)), plain, "without end"),
    Attack("among arrays", pickled({"x": shared_references(list)}), batch, "without end"),
    Attack("a key of 2^45 items", pickled(b"\x80\x04}" + TUPLES + b"Ns."), plain, "as a key"),
    Attack("keys of that", pickled(b"\x80\x04}(" + TUPLES + b"Nu."), plain, "as a key"),
    Attack("an old key of that", pickled(b"\x80\x02(" + TUPLES + b"Nd."), plain, "as a key"),
    Attack("a set of that", pickled(b"\x80\x04\x8f(" + TUPLES + b"\x90."), plain, "as a key"),
    Attack("a frozen one", pickled(b"\x80\x04(" + TUPLES + b"\x91."), plain, "as a key"),
    Attack(
        "an old set of that",
        pickled(b"\x80\x02c__builtin__\nset\n](" + TUPLES + b"e\x85R."),
        plain,
        "as a key",
    ),
    Attack("frozen sets in one another", pickled(shared_references(frozenset)), plain, "as a key"),
    Attack(
        "keys of one hash", pickled({i * (2**61 - 1): 0 for i in range(100)}), plain, "as a key"
    ),
    Attack("a list in itself", pickled(itself()), plain, "nested too deep"),
    Attack("a deep pickle", pickled(deep()), plain, "nested too deep"),
    Attack("a memo of 64 GB", pickled(b"\x80\x04Nr\xff\xff\xff\xff0]."), plain, None),
    Attack("bytes of 2^62", pickled(b"\x80\x05\x96" + b"\xff" * 7 + b"?."), plain, "refused"),
    Attack("an array of objects", pickled({"data": np.array([{}], object)}), batch, "arrays of"),
    Attack(
        "an array of 2^40 bytes",
        pickled({"data": Call(np.ndarray, (2**40,))}, 2),
        batch,
        "not callable",
    ),
    Attack("an array in a list", pickled([{"a": np.zeros(3)}]), batch, "another container"),
    Attack("objects in an archive", saved(labels=np.array([{}, 1], object)), of_archive, "a.npz"),
    Attack("labels with a fraction", saved(labels=[0.5, 1]), of_archive, "list of integers"),
    Attack("labels true and false", saved(labels=[True, False]), of_archive, "list of integers"),
    Attack("labels of 2^64", saved(labels=np.array([0, 2**64 - 1])), of_archive, "integers"),
    Attack("names that are numbers", saved(class_names=[0, 1]), of_archive, "not texts"),
    Attack(
        "pictures of two channels",
        saved(images=np.zeros((2, 4, 4, 2), np.uint8)),
        of_archive,
        "not uint8",
    ),
    Attack(
        "a shape of 10^15",
        zipped(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10**15,)}")),
        of_archive,
        "a.npz",
    ),
    Attack(
        "a shape of 4 GB that isn't there",
        zipped(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000,)}")),
        of_archive,
        "a.npz",
    ),
    Attack("an archive of zeros", zipped(bytes(1 << 23), packed=True), of_archive, "unpacks to"),
    Attack(
        "a .gz of zeros",
        lambda f: (idx("labels-idx1-ubyte", True)(f), bomb("train-images-idx3-ubyte.gz")(f)),
        lambda f: readers.fashion_mnist(f, "train"),
        "unpacks to more",
    ),
    Attack(
        "blank lines for ever",
        bomb("a.jsonl.gz", b"\n" * (1 << 17)),
        code_texts("a.jsonl.gz"),
        "unpacks to more",
    ),
    Attack("a line for ever", bomb("a.jsonl.gz"), code_texts("a.jsonl.gz"), "unpacks to more"),
    Attack("a member outside", lambda f: tar(f, member("../../../x.txt")), samples, None),
    Attack("a link", lambda f: tar(f, member("1.png", tarfile.SYMTYPE)), samples, "is a link"),
    Attack("a hard link", lambda f: tar(f, member("1.png", tarfile.LNKTYPE)), samples, "is a link"),
    Attack("a device", lambda f: tar(f, member("1.png", tarfile.CHRTYPE)), samples, "is a link"),
    Attack(
        "a picture of 10^18 bytes",
        lambda f: tar(f, member("1.png", size=10**18)),
        samples,
        "too large",
    ),
    Attack("names of names", long_names, samples, "a damaged one"),
    Attack("an index beyond the shard", lying_index(image_size=1 << 40), samples, None),
    Attack("an index before the shard", lying_index(image=-1), samples, None),
    Attack("an index of 10^18 bytes of text", lying_index(text_size=10**18), samples, None),
    Attack("an index of other places", lying_index(text=512, text_size=4), samples, "delete it"),
    Attack("links in circles", circles, circle_count, None),
    Attack("a picture above its root", pair(image="../x.png"), retrieval, "outside"),
    Attack("an absolute picture", pair(image="/etc/passwd"), retrieval, "outside"),
    Attack("a picture with a zero", pair(image="x\0.png"), retrieval, "no name"),
    Attack("hard of no text", pair(hard=[1]), retrieval, "hard is"),
    Attack("image_id of no number", pair(image_id={"a": [1]}), retrieval, "image_id is"),
    Attack(
        "keys of several lines",
        edited(made_pairs("pairs_val.json"), lambda v: v.__setitem__(0, {"a\n\x1b[2J": 1})),
        retrieval,
        "has no 'image'",
    ),
    Attack(
        "a deep entry",
        lambda f: (
            made_pairs("")(f),
            text(f / "pairs_val.json", "[" + '{"a":' * 400 + "1" + "}" * 400 + "]"),
        ),
        lambda f: read_annotations(f / "pairs_val.json"),
        "nested too deep",
    ),
    *(
        Attack(
            f"a list with {line}",
            listed("l.txt", "a.png 0", line),
            lambda f: list_file(f, "train", "l.txt"),
            message,
        )
        for line, message in (
            ("../a.png 0", "no path below"),
            ("/etc/passwd 0", "no path below"),
            (f"a.png {10**9}", "is not 'path label'"),
            (f"a.png {'9' * 5000}", "is not 'path label'"),
        )
    ),
    *(
        Attack(f"iNaturalist's label {value!r:.20}", label(value), of_inat, "val2018.json")
        for value in (True, 0.5, "0", 10**30, -1, None, [0], float("nan"))
    ),
    *(
        Attack(
            f"iNaturalist's file {name!r}",
            inat(images=[{"id": 1, "file_name": name}]),
            of_inat,
            "no path below",
        )
        for name in ("../a.jpg", "/etc/passwd", 5, None, "\ud800", "a\0")
    ),
    *(
        Attack(
            f"a cleaned label {value!r:.20}",
            edited(web("clean.json"), lambda v, value=value: v.update(labels=[value])),
            of_clean,
            "clean.json",
        )
        for value in (True, 0.5, "0", 10**30, -1, None)
    ),
    Attack(
        "a cleaned path above",
        edited(web("clean.json"), lambda v: v.update(images=["../x"])),
        of_clean,
        "no path below",
    ),
    Attack(
        "a true label of half",
        edited(web("truth.json"), lambda v: v["google/a.jpg"].update(label=0.5)),
        truth,
        "truth.json",
    ),
    Attack(
        "a true label of -1",
        edited(web("truth.json"), lambda v: v["google/a.jpg"].update(label=-1)),
        truth,
        "truth.json",
    ),
    *(
        Attack(f"a box {value!r:.30}", box(value), references, "has no bbox")
        for value in (
            [float("nan"), 1, 2, 3],
            [1, 1, float("inf"), 2],
            [1, 1, -2, 3],
            [True, 1, 2, 3],
            [10**400, 1, 2, 3],
            ["1", 1, 2, 3],
            "1234",
            {"0": 1},
        )
    ),
    *(
        Attack(f"a height {value!r:.20}", size(value), references, "height and width")
        for value in ("16", 0, -16, 16.5, True, 10**30, None)
    ),
    Attack(
        "an image twice",
        edited(
            made_pairs("refcoco+/instances.json"),
            lambda v: v["images"].append(v["images"][0] | {"height": 5}),
        ),
        references,
        "before",
    ),
    Attack(
        "proposals of no list",
        edited(made_pairs("dets.json"), lambda v: v.update({"0": "box"})),
        references,
        "is no list",
    ),
    Attack(
        "a question of 2^70",
        edited(made_pairs("vqa_test.json"), lambda v: v[0].update(question_id=2**70)),
        vqa,
        "question_id is",
    ),
    Attack(
        "half a character",
        edited(made_pairs("answer_list.json"), lambda v: v.append("\ud800")),
        vqa,
        "list of texts",
    ),
    Attack(
        "a token of 2^31",
        edited(byte_pairs("vocab.json"), lambda v: v.update({"new": 2**31})),
        CodeTokenizer,
        "among",
    ),
    Attack(
        "lower case of 'no'",
        edited(settings, lambda v: v.update(do_lower_case="no")),
        CodeTokenizer,
        "true or false",
    ),
    *(
        Attack(
            f"config of {change}",
            lambda f, change=change: config(f, **change),
            text_config,
            "config.json",
        )
        for change in (
            {"vocab_size": 10**12},
            {"vocab_size": True},
            {"vocab_size": "30"},
            {"hidden_size": 10**6},
            {"num_hidden_layers": 10**9},
            {"num_attention_heads": 3},
            {"pad_token_id": 30},
            {"hidden_dropout_prob": 1.5},
            {"layer_norm_eps": float("nan")},
            {"model_type": ["bert"]},
        )
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.data.readers.files.SMALL", 1 << 18)
    folder = tmp_path / "d"
    folder.mkdir()
    attack.put(folder)
    error = outcome(folder, attack.read)
    if attack.message is None:
        assert error is None, repr(error)
    else:
        assert type(error) in (DataCorruptError, CheckpointError), repr(error)
        assert attack.message in str(error)
        assert str(folder) in str(error)
        assert len(str(error)) < 1000


def test_no_pickle_is_read_by_the_interpreter_in_c(tmp_path: Path) -> None:
    """A key of an exponential hash would not even let the alarm ring."""
    (tmp_path / "p").write_bytes(b"\x80\x04Nr\xff\xff\xff\x7f.")
    before = _peak()
    assert plain(tmp_path) is None
    assert _peak() - before < 1 << 20  # KiB


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
