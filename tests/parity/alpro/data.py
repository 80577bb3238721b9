"""Adapters of the pipeline: which frames, augmentation, rates."""

from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from shared.data.image_text.videos import (
    even_frames,
    head_tail_frames,
    random_frames,
    uniform_frames,
)
from shared.data.views import randaugment as operations
from shared.data.views.recipes import RecipeViews
from shared.training.schedules import linear_rate

Inputs = dict[str, Any]

MOST = 32  # indices of a row of the case
LEVELS = (5, 7)  # of clips and of stills
MIN_RATE = 1e-8  # what no case sets, since it stands in the official code; so do our configs
FILL = 128  # likewise


def frame_sampling(config: Inputs, inputs: Inputs, weights: Inputs) -> Inputs:
    pairs = list(zip(inputs["video_len"].tolist(), inputs["num_frm"].tolist(), strict=True))
    padded = {name: torch.full((len(pairs), MOST), -1) for name in ("uniform", "nlvl_uniform")}
    rules = {"uniform": uniform_frames, "nlvl_uniform": even_frames}
    possible = {name: torch.ones(len(pairs), dtype=torch.long) for name in ("headtail", "rand")}
    drawn = {"headtail": head_tail_frames, "rand": random_frames}
    for row, pair in enumerate(pairs):
        for name, rule in rules.items():
            numbers = torch.tensor(rule(*pair))
            padded[name][row, : len(numbers)] = numbers
        for name, draw in drawn.items():
            try:
                numbers = draw(*pair, np.random.default_rng(row))
            except ValueError:
                possible[name][row] = 0
            else:
                assert numbers == sorted(set(numbers))
                assert len(numbers) == pair[1]
                assert 0 <= numbers[0] <= numbers[-1] < pair[0]
                middle = sum(number < pair[0] // 2 for number in numbers)
                assert name == "rand" or middle == pair[1] // 2
    return padded | {f"{name}_possible": value for name, value in possible.items()}


def _operation(name: str, image: np.ndarray, level: float) -> np.ndarray:
    """An operation as the official code does it, which lets sharpness wrap around."""
    known = dict(operations.FOR_CLIPS)
    known["Sharpness"] = (operations.sharpness, *known["Sharpness"][1:])
    # Whether a magnitude is negated is no question: none is.
    with patch.object(operations, "FILL", FILL):
        changed = [operations.apply(name, image, level, sign, known) for sign in (False, True)]
    assert np.array_equal(*changed)
    return changed[0]


def randaugment(config: Inputs, inputs: Inputs, weights: Inputs) -> Inputs:
    names = config["ops"]
    assert set(names) == set(operations.FOR_CLIPS)
    image = inputs["image"].numpy().astype(np.uint8)
    outputs: Inputs = {
        f"{name}_M{level}": _operation(name, image, level) for name in names for level in LEVELS
    }
    # Through the views of our configs, by draws that lead to the case's operations.
    drawn = inputs["clip_ops"].tolist()
    frames = [image, image[::-1], image[:, ::-1]]
    views = RecipeViews(
        *([0.0] * 3, [1 / 255] * 3, len(image), None),
        {"train": [{"op": "rand_augment", "among": "clips", "distinct": True, "p": 1.0,
                    "magnitude": LEVELS[0]}]},
    )  # fmt: skip
    ours = list(operations.FOR_CLIPS)
    # As many draws as there are operations lead to each of them once.
    every = _Drawn(np.zeros((len(ours), 3)))
    with patch.object(operations, "apply", side_effect=lambda _, image, *how: image) as applied:
        how = LEVELS[0], 1.0, operations.FOR_CLIPS, True
        operations.random_operations(image, every, len(ours), *how)  # type: ignore[arg-type]
    assert sorted(call.args[0] for call in applied.call_args_list) == sorted(ours)
    places, left = [], list(ours)
    for number in drawn:
        places.append((left.index(names[number]) + 0.5) / len(left))
        left.remove(names[number])
    draws = np.array([[place, 0.0, 0.0] for place in places])
    with patch("shared.data.views.interface.key_generator", lambda key: _Drawn(draws)):
        clip = views(frames, "train", np.zeros(len(frames), np.uint64))
    outputs |= {"clip_ops": torch.tensor(drawn), "clip_out": clip.permute(0, 2, 3, 1)}
    return {
        name: torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value
        for name, value in outputs.items()
    }


class _Drawn:
    """A generator whose draws are known."""

    def __init__(self, draws: np.ndarray) -> None:
        self.draws = draws

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        assert shape == self.draws.shape
        return self.draws


def lr_schedule(config: Inputs, inputs: Inputs, weights: Inputs) -> Inputs:
    steps, total = inputs["step"].tolist(), int(inputs["num_train_steps"])
    how = {"lr": config["learning_rate"], "min_lr": MIN_RATE}
    ratios = {"lr_warmup_0.05": 0.05, "lr_warmup_0.1": 0.1}
    return {
        name: torch.tensor([linear_rate(s, total, **how, warmup_ratio=ratio) for s in steps])
        for name, ratio in ratios.items()
    }
