"""Every reader of a data set's files, with every damage and with attacks of its own.

A reader ends in its own errors, which name the file in one line, or returns; it never hangs, starts
a process or writes elsewhere.
"""

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import savemat
from tokenizers import ByteLevelBPETokenizer

from benchmarks.miniatures.synthetic import idx_bytes
from benchmarks.miniatures.synthetic_pairs import pairs
from methods.alpro.data import WebPairs
from methods.alpro.prompting import read_entities
from methods.blip.hugging_face import read_folder
from methods.cascode.folders import text_config
from methods.cascode.readers import Reader as CodeReader
from methods.cascode.tokenizer import CodeTokenizer
from methods.mopro.data import WebData
from methods.pb_ovd.data import read_vocabulary
from methods.pb_ovd.detect.proposals import FileProposals
from methods.pb_ovd.mentions import read_object_names
from shared.checkpoints.reading import CheckpointError
from shared.data.detection.samples import DetectionSamples, Preparation, Resizing
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.fetching import _check_content
from shared.data.image_text.annotations import Reading, read_annotations
from shared.data.image_text.captioning import CaptioningData
from shared.data.image_text.clips import read_numbered_answers
from shared.data.image_text.labelled_sentences import EntailmentData, NLVRData
from shared.data.image_text.pairs import PairData
from shared.data.image_text.referring import References, ReferringData
from shared.data.image_text.shards import Row, ShardSamples
from shared.data.image_text.videos import uniform_frames
from shared.data.image_text.vqa import VQAData
from shared.data.images import ArrayImages
from shared.data.loading.feature_cache import cache_key, cached, checksum, mapped
from shared.data.readers import small_images as readers
from shared.data.readers.folders import archive, image_folder, list_file, scan
from shared.data.readers.imagenet import imagenet, imagenet_fraction, split_file
from shared.data.readers.instances import read_instances
from shared.data.readers.long_tail import inaturalist2018
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.data.readers.videos import read_frames
from shared.data.readers.voc_places import PLACES_IMAGES, VOC_CLASSES, places205, voc2007
from shared.data.readers.webvision import webvision
from shared.data.text.wordpiece import WordPiece
from tests.hostile import damages
from tests.hostile.tripwire import watched
from tests.unit.blip_toy import build as blip
from tests.unit.blip_transformers import SQUARE
from tests.unit.detection_toy import content as coco
from tests.unit.detection_toy import federated as lvis
from tests.unit.detection_toy import written
from tests.unit.pb_ovd_toy import described

FIXTURES = Path(__file__).parents[1] / "fixtures"
DATA_ERRORS = (DataNotFoundError, DataCorruptError)
ALL = frozenset(damages.REFUSED)
NAN, INF = float("nan"), float("inf")


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


def inaturalist(root: Path) -> Path:
    picture(root / "a.jpg")
    value = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 0, "name": "moss"}]}
    annotations = {"annotations": [{"image_id": 1, "category_id": 0}]}
    return content(root / "val2018.json", value | annotations)


def folders(root: Path) -> Path:
    for name in ("n1/1.png", "n1/2.png", "n2/1.png", "n2/2.png"):
        picture(root / "train" / name)
    return root


def split_again(root: Path) -> object:
    return split_file(imagenet(root, "train"), np.arange(4), 2, 0, root / "split.json")


def split(root: Path) -> Path:
    split_again(folders(root))
    return root / "split.json"


def fraction_again(root: Path) -> object:
    return imagenet_fraction(root, "train", 0.5, root / "part.txt")


def fraction(root: Path) -> Path:
    fraction_again(folders(root))
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


def of_clean(folder: Path) -> object:
    return webvision(folder, "train", 1, cleaned=folder / "clean.json")


def truth(root: Path) -> object:
    data = object.__new__(WebData)
    images = webvision(root, "train", num_classes=1)
    data._h = type("h", (), {"truth": str(root / "truth.json"), "dataset": {"root": str(root)}})()
    data.images = lambda split: images  # type: ignore[method-assign, assignment, return-value]
    return WebData.true_labels.func(data)  # type: ignore[attr-defined]


# --- pictures with texts -----------------------------------------------------------------------

VIEWS = {
    "_target_": "shared.data.views.recipes.RecipeViews",
    **{"size": 8, "test_resize": None, "mean": [0.5] * 3, "std": [0.5] * 3},
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
        return [data.source.entry(n) for n in range(len(data.source))], data.evaluated("val")

    return read


vqa = module(VQAData, "vqa_train", "vqa_test", answer_list="answer_list.json")
nlvr = module(NLVRData, "nlvr_train", "nlvr_dev")
entailment = module(EntailmentData, "ve_train", "ve_dev", "images")
retrieval = module(PairData, "pairs_train", "pairs_val")
captioning = module(CaptioningData, "pairs_train", "pairs_val")
grounding = module(
    ReferringData,
    "refcoco+_train",
    "refcoco+_val",
    refs="refcoco+/refs(unc).p",
    instances="refcoco+/instances.json",
    proposals="dets.json",
)


def coco_references(root: Path) -> Path:
    """The captions of `pairs_val.json` in COCO's layout."""
    entries = json.loads(made_pairs("pairs_val.json")(root).read_text())
    ids = [int(Path(entry["image"]).stem) for entry in entries]
    said = [
        {"image_id": n, "caption": t}
        for n, e in zip(ids, entries, strict=True)
        for t in e["caption"]
    ]
    return content(root / "gt.json", {"images": [{"id": n} for n in ids], "annotations": said})


def references(root: Path) -> object:
    data = CaptioningData(
        files={"val": f"{root}/pairs_val.json"},
        image_root=str(root),
        vocab=f"{root}/vocab.txt",
        augmentation=VIEWS,
        batch_size=1,
        max_corrupt=1.0,
        references={"val": f"{root}/gt.json"},
    )
    return data.references("val")


def video(folder: Path) -> Path:
    pytest.importorskip("av")
    return Path(shutil.copy(FIXTURES / "videos/ramp.mp4", folder / "a.mp4"))


def web_videos(folder: Path) -> Path:
    video(folder)
    words(folder)
    return text(folder / "w.csv", "videoid,page_dir,name", "a,,dog", 'a,,"a man, a dog"')


def web_pairs(folder: Path, name: str) -> WebPairs:
    files = {"train": f"{folder}/{name}", "val": f"{folder}/{name}"}
    where = {"image_root": str(folder), "vocab": f"{folder}/vocab.txt", "frames": 1}
    sizes = {"batch_size": 1, "max_corrupt": 1.0, "text_rules": "alpro", "test_split": None}
    return WebPairs(files=files, augmentation=VIEWS, **where, **sizes)


def of_web(folder: Path) -> object:
    data = web_pairs(folder, "w.csv")
    data.setup("fit")
    return [data.source.entry(n) for n in range(len(data.source))], list(data.train_dataloader())


def web_table(folder: Path) -> Path:
    web_videos(folder)
    row = {"video_id": "a", "page_dir": "", "text": "dog", "txt_len": 3}
    return content(folder / "w.json", [row])


def of_table(folder: Path) -> object:
    return web_pairs(folder, "w.json").evaluated("val")


def numbered(folder: Path) -> Path:
    return content(folder / "a.json", {"dog": 1, "man": 0})


def of_numbered(folder: Path) -> object:
    return read_numbered_answers(folder / "a.json")


def frames(folder: Path) -> object:
    return read_frames(folder / "a.mp4", partial(uniform_frames, count=8))


def entries_again(folder: Path) -> object:
    how = Reading({"image": str}, folder=folder / "index")
    return list(read_annotations(folder / "a.jsonl", how))


def kept_entries(folder: Path) -> Path:
    entries_again(jsonl(folder).parent)
    return next((folder / "index").glob("*.safetensors"))


def jsonl(folder: Path) -> Path:
    return text(folder / "a.jsonl", '{"image": "a.png"}', '{"image": "b.png"}')


def samples(folder: Path) -> object:
    found = ShardSamples(folder / "a.tar", 1.0, index_folder=folder / "index")
    numbers = np.arange(len(found))
    return found.take(numbers), [*map(found.entry, numbers)]


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
    return next((folder / "index").glob("*.safetensors"))


# --- texts -------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]


def words(folder: Path) -> Path:
    return text(folder / "vocab.txt", *WORDS)


def entities(folder: Path) -> Path:
    return text(folder / "entities.txt", "man 10", "dog 9")


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
    return folder / "key.safetensors"


def config(folder: Path) -> Path:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 16, "type_vocab_size": 2}
    rates = {"hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12}
    value = {"model_type": "bert", "pad_token_id": 0, **sizes, **rates}
    return content(folder / "config.json", value)


def port(name: str) -> Callable[[Path], Path]:
    """A folder of transformers' port of BLIP, of which `name` is damaged."""

    def build(folder: Path) -> Path:
        for file in ("config.json", "model.safetensors"):
            shutil.copy(PORT / file, folder / file)
        return folder / name

    return build


def of_port(folder: Path) -> object:
    return read_folder(blip("captioning", vision=SQUARE), folder)


def detection(value: Callable[[], Any], name: str = "instances.json") -> Callable[[Path], Path]:
    return lambda folder: written(folder, value()).with_name(name)


def detections(folder: Path) -> object:
    instances = read_instances(folder / "instances.json", folder, masks=True)
    preparation = Preparation((0, 0, 0), (1, 1, 1), masks=True)
    return DetectionSamples(instances, np.arange(2), Resizing([8], 32), preparation).__getitems__(
        np.arange(2)
    )


def texts(folder: Path) -> object:
    return read_vocabulary(read_instances(folder / "instances.json", folder), None)


def named(folder: Path) -> Path:
    written(folder, coco())
    return content(folder / "names.json", {"cup": [1.0, 2.0], "dog": [3.0, 4.0]})


def of_names(folder: Path) -> object:
    instances = read_instances(folder / "instances.json", folder)
    return read_vocabulary(instances, str(folder / "names.json"))


PORT = Path(__file__).parents[1] / "fixtures" / "blip" / "captioning"
MADE_ANEW = frozenset({"missing", "a link to nothing", "a link to itself"})
PIXELS = frozenset({"zeros", "noise"})
RAW = (*DATA_ERRORS, ValueError)  # a wrong number of images, as their messages say

READERS = [
    Reader(
        "names of objects",
        lambda folder: content(folder / "words.json", {"tv": ["tv", "television"]}),
        lambda folder: read_object_names(folder / "words.json"),
    ),
    Reader(
        "proposals",
        lambda folder: written(folder, coco()),
        lambda folder: FileProposals(str(folder / "instances.json"), 10),
    ),
    Reader("image list", listed("l.txt", "a.png 0"), lambda f: list_file(f, "train", "l.txt")),
    Reader(
        "picture of a folder",
        lambda f: picture(picture(f / "train" / "red" / "b.png").with_name("a.png")),
        lambda f: image_folder(f, "train", in_memory=True),
        handles=frozenset({"missing", "a folder"}),
    ),
    Reader("array archive", npz, lambda f: archive(f, "train", "a.npz")),
    *(
        Reader(f"Fashion-MNIST {name} {packed}", idx(name, packed), fashion)
        for name, packed in (("images-idx3-ubyte", False), ("labels-idx1-ubyte", True))
        for fashion in [lambda f: readers.fashion_mnist(f, "train")]
    ),
    *(
        Reader(f"CIFAR-10 {name}", cifar(name), lambda f: readers.cifar10(f, "test"))
        for name in ("cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta")
    ),
    Reader("CIFAR-100", cifar("cifar-100-python/test"), lambda f: readers.cifar100(f, "test")),
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
    Reader("iNaturalist", inaturalist, lambda f: inaturalist2018(f, "val")),
    Reader("VOC2007 last list", voc("tvmonitor"), lambda f: voc2007(f, "test")),
    Reader("Places205 list", places, lambda f: places205(f, "val")),
    Reader("ImageNet split", split, split_again, RAW, MADE_ANEW),
    Reader("ImageNet fraction", fraction, fraction_again, RAW, MADE_ANEW),
    *(
        Reader(f"WebVision {name}", web(name), reading, handles=handles)
        for name, reading, handles in (
            ("info/train_filelist_google.txt", lambda f: webvision(f, "train", 1), frozenset()),
            ("info/val_filelist.txt", lambda f: webvision(f, "val", 1), frozenset()),
            ("info/class_names.txt", lambda f: webvision(f, "val", 1), frozenset({"missing"})),
            ("clean.json", of_clean, frozenset()),
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
            ("captioning", captioning, ("pairs_train.json", "pairs_val.json", "vocab.txt")),
            ("RefCOCO+", grounding, ("refcoco+_train.json", "refcoco+_val.json", "dets.json")),
            ("RefCOCO+", grounding, ("refcoco+/instances.json", "refcoco+/refs(unc).p")),
        )
        for name in names
    ),
    Reader("index of annotations", kept_entries, entries_again, handles=ALL),
    Reader("references", coco_references, references),
    Reader("video", video, frames),
    Reader("videos of the web", web_videos, of_web),
    Reader("numbered answers", numbered, of_numbered),
    Reader("COCO's instances", detection(coco), detections),
    Reader("LVIS's instances", detection(lvis), detections),
    Reader("picture with boxes", detection(coco, "5.png"), detections),
    Reader("classes with texts", detection(described), texts),
    Reader("embedded names", named, of_names),
    Reader("shard", tar, samples),
    Reader("index of a shard", indexed, samples, handles=ALL),
    Reader("entities", entities, lambda f: read_entities(f / "entities.txt", 2)),
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
    *(
        Reader(f"port of BLIP {name}", port(name), of_port, (CheckpointError,))
        for name in ("config.json", "model.safetensors")
    ),
]


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


OTHERS = tuple(damage for damage in damages.DAMAGES if damage not in damages.TELLING)


@pytest.mark.parametrize(
    "tried",
    [damages.TELLING, pytest.param(OTHERS, marks=pytest.mark.slow)],
    ids=["telling", "rest"],
)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_whole_file_is_read_and_a_damaged_one_refused(reader, tried, tmp_path):
    source = tmp_path / "valid"
    source.mkdir()
    place = reader.build(source).relative_to(source)
    complaints = []
    for number, damage in enumerate(("", *tried)):
        folder = tmp_path / f"d{number}"
        shutil.copytree(source, folder, copy_function=os.link)
        if damage:
            (folder / place).unlink()
            shutil.copy2(source / place, folder / place)
            damages.DAMAGES[damage](folder / place)
        if not fits(reader, damage, error := outcome(folder, reader.read), folder, place.name):
            complaints.append(f"{damage or 'whole'}: {error!r}")
    assert complaints == []


def fits(reader: Reader, damage: str, error: Exception | None, folder: Path, name: str) -> bool:
    """Whether the outcome is what may become of a file that is damaged so; "" is a whole one."""
    if not damage:
        return error is None or reader.name == "checksum of a source"
    if error is None:
        return damage in damages.TOLERATED or damage in reader.handles
    named = damage in damages.TOLERATED or name in str(error)
    return type(error) in reader.refuses and str(folder) in str(error) and named


# --- attacks -----------------------------------------------------------------------------------


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


def npy(length: int) -> bytes:
    """The head of an array of so many bytes, and none of them."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},)}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def saved(**changes: Any) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        value = {"labels": [0, 1], "class_names": ["x", "y"]}
        np.savez(folder / "a.npz", **{"images": np.zeros((2, 4, 4), np.uint8)} | value | changes)

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
        arrays = {name: values.copy() for name, values in mapped(path).items()}
        for name, value in changes.items():
            arrays["rows"][:, Row._fields.index(name)] = value
        save_file(arrays, path, {"sha256": checksum(arrays)})

    return put


def twice(root: Path) -> None:
    path = made_pairs("refcoco+/instances.json")(root)
    value = json.loads(path.read_text())
    value["images"].append(value["images"][0] | {"height": 5})
    path.write_text(json.dumps(value))


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


def plain(folder: Path) -> object:
    return read_plain_pickle(folder / "p")


def batch(folder: Path) -> object:
    return readers.read_pickle(folder / "p")


def of_archive(folder: Path) -> object:
    return archive(folder, "train", "a.npz")


def of_inat(folder: Path) -> object:
    return inaturalist2018(folder, "val")


ENDLESS = b"(" + TUPLES  # what would be hashed for ever
# What a stranger puts into a folder, and what the reader says to it; None: it just reads.
BY_READER: dict[Callable, list[tuple[str, Callable[[Path], object], str | None]]] = {
    plain: [
        ("a pickle that runs a command", pickled([Call(os.system, "true")]), "system"),
        ("a list of 2^45 items", pickled(shared_references(list)), "without end"),
        ("a key of 2^45 items", pickled(b"\x80\x04}" + TUPLES + b"Ns."), "as a key"),
        ("keys of that", pickled(b"\x80\x04}" + ENDLESS + b"Nu."), "as a key"),
        ("an old key of that", pickled(b"\x80\x02" + ENDLESS + b"Nd."), "as a key"),
        ("a set of that", pickled(b"\x80\x04\x8f" + ENDLESS + b"\x90."), "holds a set"),
        ("a frozen one", pickled(b"\x80\x04" + ENDLESS + b"\x91."), "holds a set"),
        (
            "an old set of that",
            pickled(b"\x80\x02c__builtin__\nset\n]" + ENDLESS + b"e\x85R."),
            "asks for __builtin__.set",
        ),
        ("frozen sets in one another", pickled(shared_references(frozenset)), "holds a set"),
        ("keys of one hash", pickled({i * (2**61 - 1): 0 for i in range(100)}), "as a key"),
        ("a list in itself", pickled(itself()), "nested too deep"),
        ("a deep pickle", pickled(deep()), "nested too deep"),
        ("a memo of 64 GB", pickled(b"\x80\x04Nr\xff\xff\xff\xff0]."), None),
        ("bytes of 2^62", pickled(b"\x80\x05\x96" + b"\xff" * 7 + b"?."), "refused"),
    ],
    batch: [
        ("a command among arrays", pickled({"data": Call(os.system, "true")}), "system"),
        ("a pickle that evaluates", pickled({"data": Call(eval, "1")}), "eval"),
        ("a list among arrays", pickled({"x": shared_references(list)}), "without end"),
        ("an array of objects", pickled({"data": np.array([{}], object)}), "arrays of"),
        ("an array of 2^40", pickled({"data": Call(np.ndarray, (2**40,))}, 2), "not callable"),
        ("an array in a list", pickled([{"a": np.zeros(3)}]), "another container"),
    ],
    of_archive: [
        ("objects in an archive", saved(labels=np.array([{}, 1], object)), "a.npz"),
        ("labels with a fraction", saved(labels=[0.5, 1]), "list of integers"),
        ("labels true and false", saved(labels=[True, False]), "list of integers"),
        ("labels of 2^64", saved(labels=np.array([0, 2**64 - 1])), "integers"),
        ("names that are numbers", saved(class_names=[0, 1]), "not texts"),
        ("two channels", saved(images=np.zeros((2, 4, 4, 2), np.uint8)), "not uint8"),
        ("images of fractions", saved(images=np.zeros((2, 4, 4))), "not uint8"),
        ("an archive without images", lambda f: np.savez(f / "a.npz", x=1), "no arrays images"),
        ("a label too many", saved(labels=[0, 1, 1]), "2 images but 3 labels"),
        ("a shape of 10^15", zipped(npy(10**15)), "a.npz"),
        ("a shape of 4 GB that isn't there", zipped(npy(4 * 10**9)), "a.npz"),
        ("an archive of zeros", zipped(bytes(1 << 23), packed=True), "unpacks to"),
    ],
    lambda f: readers.fashion_mnist(f, "train"): [
        (
            "a .gz of zeros",
            lambda f: (idx("labels-idx1-ubyte", True)(f), bomb("train-images-idx3-ubyte.gz")(f)),
            "unpacks to more",
        )
    ],
    code_texts("a.jsonl.gz"): [
        ("blank lines for ever", bomb("a.jsonl.gz", b"\n" * (1 << 17)), "unpacks to more"),
        ("a line for ever", bomb("a.jsonl.gz"), "unpacks to more"),
    ],
    samples: [
        ("a member outside", lambda f: tar(f, member("../../../x.txt")), None),
        ("a link", lambda f: tar(f, member("1.png", tarfile.SYMTYPE)), "is a link"),
        ("a hard link", lambda f: tar(f, member("1.png", tarfile.LNKTYPE)), "is a link"),
        ("a device", lambda f: tar(f, member("1.png", tarfile.CHRTYPE)), "is a link"),
        ("10^18 bytes", lambda f: tar(f, member("1.png", size=10**18)), "cut off or damaged"),
        ("names of names", long_names, "cut off or damaged"),
        ("an index beyond the shard", lying_index(image_size=1 << 40), "delete it"),
        ("an index before the shard", lying_index(image=-1), "delete it"),
        ("an index of 10^18 bytes of text", lying_index(text_size=10**18), "delete it"),
        ("an index of other places", lying_index(text=512, text_size=4), "delete it"),
    ],
    circle_count: [("links in circles", circles, None)],
    lambda f: read_annotations(f / "a.json"): [
        (
            "a deep entry",
            lambda f: text(f / "a.json", "[" + '{"a":' * 400 + "1" + "}" * 400 + "]"),
            "nested too deep",
        )
    ],
    lambda f: list_file(f, "train", "l.txt"): [
        (f"a list with {line:.20}", listed("l.txt", "a.png 0", line), message)
        for line, message in (
            ("../a.png 0", "no path below"),
            ("/etc/passwd 0", "no path below"),
            (f"a.png {10**9}", "is not 'path label'"),
            (f"a.png {'9' * 5000}", "is not 'path label'"),
        )
    ],
    references: [("an image twice", twice, "before")],
}
ATTACKS = [
    pytest.param(put, read, message, id=name)
    for read, rows in BY_READER.items()
    for name, put, message in rows
]

NUMBERS = (True, 0.5, "0", 10**30, -1, None)
PAIRS, INSTANCES = made_pairs("pairs_val.json"), made_pairs("refcoco+/instances.json")
BOXES = ([NAN, 1, 2, 3], [1, 1, INF, 2], [1, 1, -2, 3], [True, 1, 2, 3], [10**400, 1, 2, 3])
BOXES = (*BOXES, ["1", 1, 2, 3], "1234", {"0": 1})
EDITS: list[tuple[Callable, tuple, tuple, Callable[[Path], object], str]] = [
    # file, place in its json, values that a stranger puts there, reader, what it says
    (PAIRS, (0, "image"), ("../x.png", "/etc/passwd"), retrieval, "outside"),
    (PAIRS, (0, "image"), ("x\0.png",), retrieval, "no name"),
    (PAIRS, (0, "hard"), ([1],), retrieval, "hard is"),
    (PAIRS, (0, "image_id"), ({"a": [1]},), retrieval, "image_id is"),
    (PAIRS, (0,), ({"a\n\x1b[2J": 1},), retrieval, "has no 'image'"),
    (inaturalist, ("annotations", 0, "category_id"), (*NUMBERS, [0], NAN), of_inat, "val2018.json"),
    (inaturalist, ("images", 0, "file_name"), ("../a.jpg", "/x", 5, None, "\ud800", "a\0"),
     of_inat, "no path below"),
    (inaturalist, ("annotations", 0, "image_id"), (2,), of_inat, "n-th annotation"),
    (inaturalist, ("categories", 0, "id"), (5,), of_inat, "not 0, 1, 2"),
    (inaturalist, ("images",), (3, None), of_inat, "not a file of iNaturalist"),
    (web("clean.json"), ("labels", 0), (*NUMBERS, 1), of_clean, "clean.json"),
    (web("clean.json"), ("labels",), ([0, 0], [], None, 0), of_clean, "labels"),
    (web("clean.json"), ("images", 0), ("../x",), of_clean, "no path below"),
    (web("clean.json"), ("images", 0), (3, None), of_clean, "no annotation"),
    (web("clean.json"), ("images",), ([], "a", None), of_clean, "clean.json"),
    (web("truth.json"), ("google/a.jpg", "label"), (0.5, -1), truth, "truth.json"),
    (INSTANCES, ("annotations", 0, "bbox"), BOXES, references, "has no bbox"),
    (INSTANCES, ("images", 0, "height"), ("16", 0, -16, 16.5, True, 10**30, None), references,
     "height and width"),
    (detection(coco), ("annotations", 0, "bbox"), BOXES, detections, "entry 0: bbox is"),
    (detection(coco), ("annotations", 0, "id"), (*NUMBERS[:4], None, [1]), detections, "id is"),
    (detection(coco), ("annotations", 0, "area"), (True, "0", 10**30, -1, None, NAN), detections,
     "area is"),
    (detection(coco), ("annotations", 1, "segmentation"),
     ("", [[]], [[1, 2]], [[NAN] * 6], [[1e300] * 6], [[[1, 2]] * 3], 7, [{"counts": [1]}]),
     detections, "segmentation"),
    (detection(coco), ("annotations", 1, "segmentation", "counts"),
     ("3`h9", "oooo", [2**40], [-1, 385], "x" * 10**6, [384.0], {}, None), detections, "counts"),
    (detection(coco), ("annotations", 1, "segmentation", "size"), ([10**9] * 2, None, 4),
     detections, "its size is"),
    (detection(coco), ("images", 0, "height"), ("20", 0, 10**9, 20.5, True, None), detections,
     "height is"),
    (detection(coco), ("images", 0, "height"), (21,), detections, "height and width (20, 30)"),
    (detection(coco), ("images", 0, "file_name"), ("../5.png", "/etc/passwd"), detections,
     "outside"),
    (detection(coco), ("images", 0, "file_name"), ("a\0", "\ud800"), detections, "no name"),
    (detection(coco), ("categories", 0, "name"), ("\ud800", "", 7, None), detections, "name is"),
    (detection(described), ("categories", 0, "embedding", "ClipEmb"),
     ([10**400], [True, 1.0], ["1", 2.0], [[1.0], [2.0]], [], {}, "x" * 10**5, 7, [NAN, 1.0]),
     texts, "embedding is"),
    (detection(described), ("categories", 0, "split"), ("novel", 1, [], None, {}), texts,
     "expected seen or unseen"),
    (named, ("cup",), ("1", 7, {}, [None], [True], [10**400], []), of_names, "embedding is"),
    (detection(lvis), ("images", 0, "neg_category_ids"), (None, 7, [[7]], [10**30]), detections,
     "neg_category_ids is"),
    (made_pairs("dets.json"), ("0",), ("box",), references, "is no list"),
    (made_pairs("vqa_test.json"), (0, "question_id"), (2**70,), vqa, "question_id is"),
    (made_pairs("answer_list.json"), (0,), ("\ud800",), vqa, "list of texts"),
    (numbered, ("dog",), (0, 2, -1, "1", None, 1.0, 2**70, True), of_numbered, "each once"),
    (web_table, (0, "video_id"), (None, [], 2.5, {}), of_table, "its video is"),
    (web_table, (0, "video_id"), ("../a", "/etc/a"), of_table, "outside of the image root"),
    (web_table, (0, "video_id"), ("a\0",), of_table, "no name of a file"),
    (web_table, (0, "page_dir"), ([], 3, None), of_table, "its video is"),
    (web_table, (0, "page_dir"), ("..", "/etc"), of_table, "outside of the image root"),
    (web_table, (0, "text"), (3, None, [3], {}), of_table, "its caption is"),
    (web_table, (0, "txt_len"), (80, 10**30), of_table, "are left out"),
    (byte_pairs("vocab.json"), ("new",), (2**31,), CodeTokenizer, "among"),
    (settings, ("do_lower_case",), ("no",), CodeTokenizer, "true or false"),
    (config, ("vocab_size",), (10**12, True, "30"), text_config, "config.json"),
    (config, ("hidden_size",), (10**6,), text_config, "config.json"),
    (config, ("num_hidden_layers",), (10**9,), text_config, "config.json"),
    (config, ("num_attention_heads",), (3,), text_config, "config.json"),
    (config, ("pad_token_id",), (30,), text_config, "config.json"),
    (config, ("hidden_dropout_prob",), (1.5,), text_config, "config.json"),
    (config, ("layer_norm_eps",), (NAN,), text_config, "config.json"),
    (config, ("model_type",), (["bert"],), text_config, "config.json"),
    (port("config.json"), ("model_type",), ("bert", None, ["blip"], {}), of_port, "is not blip"),
    (port("config.json"), ("architectures",), (7, "Blip", [None], {}, [["a"] * 10**5]), of_port,
     "it is of"),
    (port("config.json"), ("architectures",), (["BlipModel"],), of_port, "is not BLIP"),
    (port("config.json"), ("vision_config",), (7, [], "a", True), of_port, "not an object"),
    (port("config.json"), ("vision_config",), ({}, None), of_port, "hidden_size 768 there, 8 here"),
    (port("config.json"), ("vision_config", "hidden_size"),
     (10**12, 10**400, True, "8", [8], NAN, -8, None, {}), of_port, "vision_config.hidden_size"),
    (port("config.json"), ("vision_config", "image_size"), ([16, 16], 10**6, 0), of_port,
     "vision_config.image_size"),
    (port("config.json"), ("vision_config", "layer_norm_eps"), (NAN, 0, "1e-6", INF, -1), of_port,
     "vision_config.layer_norm_eps"),
    (port("config.json"), ("text_config", "num_hidden_layers"), (10**9, 2.5), of_port,
     "text_config.num_hidden_layers"),
    (port("config.json"), ("text_config", "hidden_act"), ("relu", "x" * 10**6, 3), of_port,
     "text_config.hidden_act"),
]  # fmt: skip


def check_refusal(folder: Path, read: Callable[[Path], object], message: str) -> None:
    error = outcome(folder, read)
    assert type(error) in (DataCorruptError, CheckpointError), repr(error)
    assert message in str(error)
    assert str(folder) in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(("put", "read", "message"), ATTACKS)
def test_an_attack_is_refused(put, read, message, tmp_path, monkeypatch):
    monkeypatch.setattr("shared.data.readers.files.SMALL", 1 << 18)
    folder = tmp_path / "d"
    folder.mkdir()
    put(folder)
    if message is None:
        assert outcome(folder, read) is None
    else:
        check_refusal(folder, read, message)


@pytest.mark.parametrize(
    ("build", "place", "values", "read", "message"),
    EDITS,
    ids=[f"{'.'.join(map(str, row[1]))}-{row[4]}" for row in EDITS],
)
def test_a_value_that_cannot_be_is_refused(build, place, values, read, message, tmp_path):
    for number, value in enumerate(values):
        folder = tmp_path / f"d{number}"
        folder.mkdir()
        path = build(folder)
        holder = whole = json.loads(path.read_text())
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        path.write_text(json.dumps(whole))
        check_refusal(folder, read, message)


def test_no_pickle_is_read_by_the_interpreter_in_c(tmp_path: Path) -> None:
    """A key of an exponential hash would not even let the alarm ring."""
    (tmp_path / "p").write_bytes(b"\x80\x04Nr\xff\xff\xff\x7f.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert plain(tmp_path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
