"""Which frames of a video stand for all of it.

Source: docs/papers/blip.md, section 6; docs/papers/alpro.md, section 6; salesforce/ALPRO@4ff6163
`src/datasets/dataset_base.py:AlproBaseDataset._load_video_from_path_decord`. Numbers depend on the
count of frames and on a key alone, never on who decodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from numpy.random import Generator

from shared.randomness import key_generator, sample_keys


def uniform_frames(video_frames: int, count: int, generator: object = None) -> list[int]:
    """Numbers of frames a whole number of frames apart, so that the end may be left out; a video of
    fewer than `count` repeats its first."""
    step = video_frames // count
    return [step * number for number in range(_length(video_frames, count))]


def even_frames(video_frames: int, count: int, generator: object = None) -> list[int]:
    """Numbers of frames over the whole length."""
    step = video_frames / count
    return [int(step * number) for number in range(_length(video_frames, count))]


def _length(video_frames: int, count: int) -> int:
    """`count`, or by a rounding of the official range one more (14, where 13 of 15 are wanted)."""
    return math.ceil(video_frames / (video_frames / count))


def random_frames(video_frames: int, count: int, generator: Generator) -> list[int]:
    """Numbers of `count` different frames in order; ValueError if there are fewer."""
    if video_frames < count:
        raise ValueError(f"{video_frames} frames, of which {count} different ones can't be drawn")
    return sorted(generator.choice(video_frames, count, replace=False).tolist())


def head_tail_frames(video_frames: int, count: int, generator: Generator) -> list[int]:
    """Numbers of different frames in order, half of them of the first half of the video."""
    middle = video_frames // 2
    head = random_frames(middle, count // 2, generator)
    tail = random_frames(video_frames - middle, count - count // 2, generator)
    return head + [middle + number for number in tail]


RULES: dict[str, Callable[..., list[int]]] = {
    "uniform": uniform_frames,
    "even": even_frames,
    "rand": random_frames,
    "headtail": head_tail_frames,
}


@dataclass(frozen=True)
class FrameChoice:
    """`count` frames of each video, in training by the rule `train`, else by `test`; each pass over
    the training set draws others. `decoder`: see `shared.data.readers.videos.decoder`."""

    count: int
    train: str = "rand"
    test: str = "uniform"
    seed: int = 0
    decoder: str = "auto"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"frames={self.count}: a video is shown by one at least")
        if unknown := {self.train, self.test} - RULES.keys():
            raise ValueError(f"no rule {unknown.pop()!r} of frames: known are {', '.join(RULES)}")

    def of(self, entry: int, turn: int | None = None) -> Callable[[int], list[int]]:
        """Which of so many frames show an entry in that pass of training, or in evaluation."""
        key = sample_keys(self.seed, turn or 0, entry, "frames")[0]
        rule = RULES[self.test if turn is None else self.train]
        return partial(self._of, rule, key)

    def _of(self, rule: Callable[..., list[int]], key: int, video_frames: int) -> list[int]:
        return rule(video_frames, self.count, key_generator(key))[: self.count]
