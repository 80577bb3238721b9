"""A tiny artificial set of videos with texts in ALPRO's formats, for tests and smoke runs.

A clip shows one coloured shape that stands still or moves to one side. Proves nothing about videos.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.miniatures.building import (
    SPECIAL_TOKENS,
    Provenance,
    build_once,
    generator_of,
    mixed,
    write_json,
    write_lines,
    write_pictures,
    write_rows,
    write_video,
)
from benchmarks.miniatures.synthetic_pairs import COLOURS, SHAPES, Named, Picture

FRAMES = 8
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
QUESTIONS = ("what colour is it?", "what shape is it?", "which way does it move?")
KINDS = ("what", "what", "how")
PROMPT_WORDS = "a the one of good . video footage portrait photo picture"
SMALLEST = 32  # px
VERSION = 1  # raise it with any change of the clips or texts


@dataclass(frozen=True)
class Clip:
    """What is shown: a shape of a colour, and where it moves; `start` is its first corner."""

    name: str
    shown: Named
    motion: str
    start: tuple[int, int]
    size: int

    @property
    def caption(self) -> str:
        return f"a {' '.join(self.shown)} moves {self.motion}"

    def frames(self) -> NDArray[np.uint8]:
        """(F, H, W, 3)."""
        side, beyond = self.size // 3, [-self.size, -self.size, 1, 1]
        across, down = MOTIONS[self.motion]
        drawn = []
        for number in range(FRAMES):
            box = [self.start[0] + across * number, self.start[1] + down * number, side, side]
            picture = Picture(0, self.shown, self.shown, (box, beyond), (230, 230, 230), self.size)
            drawn.append(np.asarray(picture.pixels()))
        return np.stack(drawn)

    def questions(self) -> list[dict[str, Any]]:
        answers = (*self.shown, self.motion)
        rows = zip(QUESTIONS, answers, KINDS, strict=True)
        return [
            {"question": text, "answer": answer, "video_id": self.name, "answer_type": kind}
            for text, answer, kind in rows
        ]


def videos(
    root: str | Path, train: int = 36, test: int = 12, image_size: int = SMALLEST, seed: int = 0
) -> Provenance:
    """Write the set into `root`, unless it is there, and return its provenance.

    `videos/<clip_name>.mp4`; `pairs_{train,val,test}.jsonl`, {clip_name, caption};
    `qa_{train,val,test}.jsonl`, three questions a clip, with `ans2label.json`; `stills_train.json`,
    {image, caption} of the first frames of the training clips, `stills/<clip_name>.png`;
    `vocab.txt`, with the words of prompts; `entities.txt`. Validation has `test` clips as well.
    """
    if min(train, test) < 1 or image_size < SMALLEST:
        given = f"train={train}, test={test}, image_size={image_size}"
        raise ValueError(f"{given}: at least one clip of {SMALLEST} px is needed")
    generator = generator_of(seed, "clips")
    contents = mixed(list(product(COLOURS, SHAPES, MOTIONS)), generator)
    splits: dict[str, list[Clip]] = {}
    for split, count in {"train": train, "val": test, "test": test}.items():
        done = sum(map(len, splits.values()))
        clips = []
        for number in range(done, done + count):
            colour, shape, motion = contents[number % len(contents)]
            left, top = generator.integers(FRAMES, image_size - image_size // 3 - FRAMES, 2)
            start = int(left), int(top)
            clips.append(Clip(f"clip{number:04}", (colour, shape), motion, start, image_size))
        splits[split] = clips

    def build(folder: Path) -> None:
        for split, clips in splits.items():
            for clip in clips:
                write_video(folder / "videos" / f"{clip.name}.mp4", clip.frames())
            rows = [{"clip_name": clip.name, "caption": clip.caption} for clip in clips]
            write_rows(folder / f"pairs_{split}.jsonl", rows)
            write_rows(folder / f"qa_{split}.jsonl", (q for c in clips for q in c.questions()))
        shown = splits["train"]
        names = [f"stills/{clip.name}.png" for clip in shown]
        write_pictures(folder, names, (clip.frames()[0] for clip in shown))
        texts = [f"a {' '.join(clip.shown)}" for clip in shown]
        stills = [{"image": n, "caption": t} for n, t in zip(names, texts, strict=True)]
        write_json(folder / "stills_train.json", stills)
        answers = [*COLOURS, *SHAPES, *MOTIONS]
        write_json(folder / "ans2label.json", {text: n for n, text in enumerate(answers)})
        words = {word for text in QUESTIONS for word in text.replace("?", " ?").split()}
        words |= {*answers, *PROMPT_WORDS.split(), "moves"}
        write_lines(folder / "vocab.txt", [*SPECIAL_TOKENS, *sorted(words)])
        write_lines(folder / "entities.txt", [f"{name} 1" for name in answers])

    recipe = {"train": train, "test": test, "image_size": image_size, "seed": seed}
    files = build_once(root, "synthetic-videos", {"version": VERSION, **recipe}, build)
    return {"synthetic-videos": {"files": files, "licence": "CC0-1.0"}}
