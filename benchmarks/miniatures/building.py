"""Put a derived data set into a folder: once, whole or not at all, and checked when met again.

A build is described by its recipe (seed, versions, sizes). `manifests/<name>.json` is written last
and holds the recipe and the checksums, so that a killed build leaves nothing that counts as done.
"""

import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.data.errors import DataCorruptError
from shared.data.packages import sha256_of, waiting_for
from shared.data.readers.files import refusing
from shared.files import replacing

PICTURES = (".png", ".jpg", ".mp4")  # counted, not hashed
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of vocabularies, in this order
Provenance = dict[str, dict[str, Any]]
T = TypeVar("T")


def build_once(
    root: str | Path, name: str, recipe: dict[str, Any], build: Callable[[Path], None]
) -> dict[str, str]:
    """Let `build` fill an empty folder and move its entries into `root`, unless they are there.

    Entries of the same name in `root` are replaced. Concurrent processes wait for the first. One
    by another recipe and a damaged one are refused. Returns {relative path: sha256} of all files
    but the pictures, which are only counted.
    """
    root, plain = Path(root), json.loads(json.dumps(recipe))  # where a tuple equals its list
    manifest = root / "manifests" / f"{name}.json"
    with waiting_for(root):
        if manifest.is_file():
            return _checked(root, manifest, plain)
        for left_over in root.glob(".building-*"):
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(dir=root.resolve(), prefix=".building-") as workspace:
            built = Path(workspace)
            build(built)
            content = {"recipe": plain, **_inventory(built)}
            for entry in sorted(built.iterdir()):
                if (root / entry.name).is_dir():
                    shutil.rmtree(root / entry.name)
                os.replace(entry, root / entry.name)
            manifest.parent.mkdir(exist_ok=True)
            with replacing(manifest) as file:
                file.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
    return content["files"]


def generator_of(seed: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose, whatever else is drawn with the seed."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def generators_of(seed: int, purpose: str, count: int) -> list[np.random.Generator]:
    """One for each of `count` things; the first ones don't depend on how many there are."""
    children = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).spawn(count)
    return [np.random.default_rng(child) for child in children]


def mixed(values: Sequence[T], generator: np.random.Generator) -> list[T]:
    """The values in random order."""
    return [values[i] for i in generator.permutation(len(values))]


def one_of(values: Sequence[T], generator: np.random.Generator) -> T:
    """One of the values, drawn evenly."""
    return values[int(generator.integers(len(values)))]


def save_arrays(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    paths: Sequence[str],
) -> None:
    """Write N pictures for readers that hold a set in memory; `paths` are relative to the root."""
    names, below = np.array(class_names, np.str_), np.array(paths, np.str_)
    np.savez(
        path, images=images, labels=np.asarray(labels, np.int64), class_names=names, paths=below
    )


def write_list(path: Path, names: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Write lines "name label"."""
    write_lines(path, (f"{name} {label}" for name, label in zip(names, labels, strict=True)))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file of texts in any language, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each row, making the file's folder."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def write_pictures(folder: Path, paths: Sequence[str], images: Iterable[NDArray[np.uint8]]) -> None:
    """Save (H, W[, channels]) pictures as PNG files below `folder`, making its sub-folders."""
    for path, image in zip(paths, images, strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / path, compress_level=1)


def write_video(path: Path, frames: NDArray[np.uint8], rate: int = 8) -> None:
    """Save (F, H, W, 3) frames as an MP4 file of H.264 in full colour, making its folder."""
    av: Any = import_module("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format="mp4") as video:
        stream = video.add_stream("libx264", rate, options={"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv444p", 1
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())


def write_shards(
    folder: Path, name: str, count: int, samples: Sequence[Mapping[str, bytes]]
) -> None:
    """Write `count` webdataset shards `<name>-<number>.tar`; a sample is {suffix: content}."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0, len(samples), count + 1).astype(int).tolist()
    for shard in range(count):
        path = folder / f"{name}-{shard:06}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(cuts[shard], cuts[shard + 1]):
                for suffix, content in samples[number].items():
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def _checked(root: Path, manifest: Path, wanted: Mapping[str, Any]) -> dict[str, str]:
    advice = f"delete {root} and run again"
    with refusing(f"{manifest}: damaged; {advice}"):
        content = json.loads(manifest.read_text())
        found, files, pictures = (content[key] for key in ("recipe", "files", "pictures"))
    if found != wanted:
        keys = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        told = ", ".join(f"{k}={found.get(k)!r} instead of {wanted.get(k)!r}" for k in keys)
        built = f"{root} holds {manifest.stem} built with {told}"
        raise DataCorruptError(f"{built}. Give this build another folder, or delete that one")
    for name, checksum in files.items():
        path = root / name
        if not path.is_file() or sha256_of(path) != checksum:
            state = "damaged" if path.is_file() else "missing"
            raise DataCorruptError(f"{path}: {state}; {advice}")
    for folder, count in pictures.items():
        if (present := _count_pictures(root / folder)) != count:
            told = f"{present} pictures instead of {count}"
            raise DataCorruptError(f"{root / folder} has {told}; {advice}")
    return dict(files)


def _inventory(folder: Path) -> dict[str, Any]:
    """{"files": checksums, "pictures": {folder: number}}; hashing thousands of icons takes long."""
    files, pictures = {}, {}
    for entry in sorted(folder.iterdir()):
        inside = entry.rglob("*") if entry.is_dir() else [entry]
        for path in sorted(p for p in inside if p.is_file() and p.suffix not in PICTURES):
            files[path.relative_to(folder).as_posix()] = sha256_of(path)
        if entry.is_dir() and (count := _count_pictures(entry)):
            pictures[entry.name] = count
    return {"files": files, "pictures": pictures}


def _count_pictures(folder: Path) -> int:
    return sum(name.endswith(PICTURES) for _, _, names in os.walk(folder) for name in names)
