"""Small captioned scenes of the zoo's drawings, with proposals, for `tenfold-detect label`.

`main` is tenfold-detect, of one commit and in no hurry.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from methods.pb_ovd.detect import cli, labelling
from methods.pb_ovd.detect.labels import Labels
from shared.tools import command

DRAWINGS = Path(__file__).parents[2] / "zoo/drawings"
TEACHER = "zoo:albef-emoji"
NAMES = ["airplane", "banana", "bicycle", "anchor"]
VOCABULARY = {name: [name] for name in NAMES} | {"fruit": ["fruit", "banana"], "zyzzyva": ["ᚠᚢ"]}
WIDTH, HEIGHT, SIDE = 96, 64, 32


def write_scenes(folder: Path, count: int) -> dict[str, Path]:
    """`count` scenes of two drawings each as pairs.json, what objects are called, and proposals:
    the drawings' own boxes behind three others."""
    (folder / "images").mkdir(parents=True)
    entries, images, boxes = [], [], []
    for number in range(count):
        pair = [NAMES[number % 4], NAMES[(number + 1 + number // 4 % 3) % 4]]
        scene = Image.new("RGB", (WIDTH, HEIGHT), "white")
        corners = [[0, 0, 96, 64], [40, 0, 10, 10], [0, 50, 60, 14]]
        for place, name in enumerate(pair):
            drawing = Image.open(DRAWINGS / f"{name}.png").convert("RGBA").resize((SIDE, SIDE))
            x, y = 8 + 48 * place, number % 20
            scene.paste(drawing, (x, y), drawing)
            corners.append([x, y, SIDE, SIDE])
        name = f"images/{number:03}.png"
        scene.save(folder / name)
        entries.append({"image": name, "caption": f"{pair[0]} and {pair[1]}"})
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for box in corners:
            about = {"id": len(boxes), "image_id": number, "category_id": 1, "bbox": box}
            boxes.append(about | {"area": box[2] * box[3]})
    contents: dict[str, Any] = {
        "pairs.json": entries,
        "vocabulary.json": VOCABULARY,
        "proposals.json": {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": 1, "name": "object"}],
        },
    }
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content))
    return {file.partition(".")[0]: folder / file for file in contents}


def options(files: dict[str, Path], out: Path) -> list[str]:
    """The command's words but `label`."""
    given = {"vocabulary": files["vocabulary"], "proposals": files["proposals"], "out": out}
    given |= {"teacher": TEACHER, "batch-size": 4, "workers": 0, "device": "cpu"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [str(files["pairs"]), *words]


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of every file of a finished output but the journals."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def main(arguments: list[str]) -> int:
    """The command as of one commit; after `--slow` each block and each entry takes its time."""
    command.git_state = lambda: {"git_commit": "abc", "git_dirty": False}  # somebody may commit
    if arguments[:1] == ["--slow"]:
        arguments = arguments[1:]
        _delay(labelling.Labeller, "__call__", 0.02)
        _delay(Labels, "add", 0.01)
    return cli.main(arguments)


def end_with(arguments: list[str]) -> None:
    """The command in a process that ends with its status."""
    sys.exit(main(arguments))


def _delay(place: Any, name: str, seconds: float) -> None:
    original = getattr(place, name)

    def slow(*given: Any) -> Any:
        time.sleep(seconds)
        return original(*given)

    setattr(place, name, slow)
