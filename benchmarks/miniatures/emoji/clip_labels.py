"""How right ALPRO's prompter is: what it sees in regions of the clips, beside what is there.

    python -m benchmarks.miniatures.emoji.clip_labels data/emoji-clips PROMPTER.ckpt [--split val]

`labelled_clips` is the entry, for use as a `source` of a config; its figures stand in the run's
results.json. Methods never read what is where; only this does.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.miniatures.building import Provenance
from benchmarks.miniatures.emoji.clips import NAME, clips
from methods.alpro.losses import TRIES, blackened, kept_clips, random_regions
from methods.alpro.official import load_prompter
from methods.alpro.prompting import EntityPrompter, read_entities
from shared.checkpoints.reading import CheckpointError
from shared.data.errors import DataCorruptError
from shared.data.readers.videos import read_frames
from shared.files import read_json
from shared.predict.inputs import PredictError, load_predictor
from shared.randomness import torch_generator

LARGEST_PART = 0.5  # of a drawing's box that lies in a region, so that it is there
FIRST = (1, 5)
BATCH = 50


def labelled_clips(
    root: str | Path,
    prompter: str | Path | None = None,
    entities: int = 25,
    threshold: float = 0.2,
    split: str = "test",
) -> Provenance:
    """Make the `clips` present in `root`; once there is a prompter, the provenance also says how
    right its labels are, see `accuracy`, on those of a split."""
    made = clips(root)
    if prompter is None or not Path(prompter).is_file():
        return made
    figures = accuracy(*labels_and_truth(Path(root), prompter, entities, split), threshold)
    about = {"files": {}, "licence": made[NAME]["licence"]}
    return {**made, "emoji-clip-labels": about | figures}


def accuracy(labels: Tensor, there: Tensor, threshold: float) -> dict[str, float]:
    """Percentages by soft labels (B, E) and whether an entity is in the region, (B, E): `top1` and
    `top5`, the clips among whose most probable entities is one that is there, of the clips where
    any is; `chance`, what an even guess gets; `kept`, the clips that PEM learns from, of all, and
    `top1_kept` among those."""
    shown, kept = there.any(dim=1), kept_clips(labels, "paper", threshold)
    order = labels.argsort(dim=1, descending=True)
    ranked = there.gather(1, order)
    right = {k: ranked[:, :k].any(dim=1) for k in FIRST}
    shares = {f"top{k}": right[k][shown] for k in FIRST}
    shares |= {"chance": there[shown], "kept": kept, "top1_kept": right[1][shown & kept]}
    return {name: 100 * float(share.float().mean().nan_to_num()) for name, share in shares.items()}


def labels_and_truth(
    root: Path, checkpoint: str | Path, entities: int, split: str
) -> tuple[Tensor, Tensor]:
    """The prompter's soft labels of a random region of each clip of a split, and which entities are
    there by any of their names, (B, E) each."""
    predictor = load_predictor(Path(checkpoint), "cpu")
    p, tokenizer, choice = predictor.module.hparams, predictor.tokenizer, predictor.choice
    if tokenizer is None or choice is None:
        raise CheckpointError(f"{checkpoint} has seen no videos with texts")
    prompter = EntityPrompter(p["vision"], p["text"], p["embed_dim"], entities)
    load_prompter(prompter, checkpoint)
    words = read_entities(root / "unigrams.txt", entities)
    prompter.name(words, tokenizer)

    records = read_json(root / "secret" / "clip_records.json")
    shown = records["clips"][split]
    side, patch = p["vision"]["image_size"], p["vision"]["patch_size"]
    draws = torch.rand(len(shown), TRIES, 4, generator=torch_generator(0, 0, "regions"))
    inside = random_regions(draws, side, patch)
    black = predictor.views([np.zeros((1, side, side, 3), np.uint8)])[0, 0, :, 0, 0]
    numbers, labels = [], []
    for first in range(0, len(shown), BATCH):
        videos = []
        for number, clip in enumerate(shown[first : first + BATCH], first):
            chosen = choice.of(number)(len(clip["movers"][0]["corners"]))
            video = root / "videos" / f"{clip['name']}.mp4"
            videos.append(read_frames(video, partial(_given, chosen)))
            numbers.append(chosen)
        regions = blackened(predictor.views(videos), inside[first : first + BATCH], black)
        labels.append(prompter(regions, "video"))
    pixels = inside.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)
    names = [
        {
            name.lower()
            for mover in clip["movers"]
            if part_inside(mover, chosen, region) >= LARGEST_PART
            for name in records["names"][str(mover["concept"])]
        }
        for clip, chosen, region in zip(shown, numbers, pixels, strict=True)
    ]
    return torch.cat(labels), torch.tensor([[word in those for word in words] for those in names])


def _given(numbers: Sequence[int], _: int) -> Sequence[int]:
    """The same numbers of frames for any video."""
    return numbers


def part_inside(mover: Mapping[str, Any], frames: Sequence[int], region: Tensor) -> float:
    """The part of a drawing's box that lies in a region (S, S), in the mean over the frames."""
    width, height = mover["extent"]
    boxes = [mover["corners"][number] for number in frames]
    covered = [
        region[max(top, 0) : top + height, max(left, 0) : left + width].sum() for left, top in boxes
    ]
    return float(torch.stack(covered).float().mean() / (width * height))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.miniatures.emoji.clip_labels")
    parser.add_argument("root", type=Path, help="folder of the clips")
    parser.add_argument("prompter", help="a checkpoint of alpro/mini_prompter")
    parser.add_argument("--split", default="test", choices=["web", "tune", "val", "test"])
    parser.add_argument("--entities", type=int, default=25)
    given = parser.parse_args(arguments)
    try:
        clips(given.root)
        found = labels_and_truth(given.root, given.prompter, given.entities, given.split)
    except (CheckpointError, DataCorruptError, PredictError, OSError) as error:
        print(f"clip_labels: {error}", file=sys.stderr)
        return 2
    for name, value in accuracy(*found, threshold=0.2).items():
        print(f"{name}: {value:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
