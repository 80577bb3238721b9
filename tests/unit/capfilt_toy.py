"""Small pairs in all formats, and stand-ins for captioner and filter that no checkpoint needs.

What the stand-ins say of an image depends on all that is in its batch, as the rounding of a large
network does: a tool that forms other batches after a kill writes other bytes.

    python -m tests.unit.capfilt_toy run ...    is tenfold-capfilt with the stand-ins
"""

import hashlib
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from methods.blip.capfilt import cli, outcome
from methods.blip.capfilt.networks import Models
from methods.blip.capfilt.settings import Settings
from shared.randomness import key_uniforms
from shared.tools import command

WORDS = ["a", "red", "green", "small", "large", "cat", "dog", "house", "on", "the", "<b>bold</b>"]
Files = dict[str, bytes]


class ToyCaptioner:
    size, mean, std = 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    on_white = False

    def write(self, images: Tensor, keys: np.ndarray) -> list[str]:
        draws = key_uniforms(keys, 4)
        tone = int(images.double().sum().abs() * 1e3) % len(WORDS)
        return [
            " ".join(WORDS[(int(u * len(WORDS)) + tone) % len(WORDS)] for u in row) for row in draws
        ]


class ToyFilter:
    size, mean, std = 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # a block is larger than a pipe holds
    on_white = False

    def score(self, images: Tensor, texts: Sequence[str], owners: Tensor) -> Tensor:
        numbers = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:2], "big") for t in texts]
        tone = images.mean((1, 2, 3))[owners] + images.mean()
        return torch.sigmoid(3 * torch.sin(torch.tensor(numbers) + 7 * tone))


def toy_models(
    captioner: str | None, filter: str | None, settings: Settings, device: str
) -> Models:
    """`load_models`, with the stand-ins instead of what lies in the files."""
    about = {
        name: {"name": name, "sha256": str(path)}
        for name, path in (("captioner", captioner), ("filter", filter))
        if path
    }
    writer = ToyCaptioner() if settings.synthetic else None
    return Models(writer, ToyFilter() if settings.filtered else None, about)


def image(number: int, kind: str = "JPEG", side: tuple[int, int] = (20, 14)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize(side).save(content, kind)
    return content.getvalue()


def caption(number: int) -> str:
    return f"picture {number} of a <i>thing</i>, caf\u00e9"


def write_json(folder: Path, count: int, lines: bool = False) -> Path:
    """`count` pairs as pairs.json, or .jsonl, with their images in images/."""
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(count):
        name = f"images/{number:05}.jpg"
        (folder / name).write_bytes(image(number))
        entries.append({"image": name, "caption": caption(number), "image_id": number})
    path = folder / ("pairs.jsonl" if lines else "pairs.json")
    texts = [json.dumps(entry) for entry in entries]
    path.write_text("\n".join(texts) + "\n" if lines else "[" + ", ".join(texts) + "]")
    return path


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, counts: Sequence[int]) -> Path:
    """Shards 0.tar, 1.tar, ... of so many samples; every second one has its caption in a .json."""
    number = 0
    for shard, count in enumerate(counts):
        files: list[tuple[str, bytes]] = []
        for _ in range(count):
            key, text = f"{number:06}", caption(number)
            files.append((f"{key}.png", image(number, "PNG")))
            if number % 2:
                about = {"caption": text, "image_id": number, "url": "http://example.org"}
                files.append((f"{key}.json", json.dumps(about).encode()))
            else:
                files.append((f"{key}.txt", text.encode()))
            number += 1
        write_tar(folder / f"{shard}.tar", files)
    return folder


def write_folder(folder: Path, count: int) -> Path:
    """`count` images with texts beside them, in two folders below."""
    for number in range(count):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}.webp").write_bytes(image(number, "WEBP"))
        (place / f"{number:05}.txt").write_text(caption(number) + "\n")
    return folder


def outputs(folder: Path) -> Files:
    """Content of every file of a finished output but the journals."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = ((path.relative_to(folder), path) for path in files)
    return {str(name): path.read_bytes() for name, path in names if name.parts[0] != "work"}


def main(arguments: list[str]) -> int:
    """The command with the stand-ins; after `--slow` each block and each output takes its time."""
    cli.load_models = toy_models
    command.git_state = lambda: {"git_commit": "abc", "git_dirty": False}  # somebody may commit
    if arguments[:1] == ["--slow"]:
        arguments = arguments[1:]
        _delay(ToyFilter, "score", 0.02)
        _delay(outcome, "judged_texts", 0.002)
    return cli.main(arguments)


def _delay(place: Any, name: str, seconds: float) -> None:
    original = getattr(place, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return original(*arguments)

    setattr(place, name, slow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
