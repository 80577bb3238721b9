"""`make zoo`: train the small models of zoo/README.md and measure them.

    python -m benchmarks.zoo [overrides]

Three parts, each from the one before: the text tower (`text_tower.py`), the experiments
albef/zoo_towers and albef/zoo_emoji. What is finished is kept and what was interrupted goes on, so
that the same command continues. The models then lie in outputs/zoo, with metrics.json: those of the
held-out artist's drawings, with 95 % intervals. Exit status 1 if a part failed.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.claims import compose_experiment
from benchmarks.zoo import text_tower
from shared import cli
from shared.checkpoints.reading import load_checkpoint, load_module, rebuild_module
from shared.checkpoints.writing import write_portable
from shared.checkpoints.zoo import SUFFIX
from shared.files import read_json, write_json

MADE = Path("outputs/zoo")
TEXT = MADE / "text.safetensors"
PARTS = ("zoo_towers", "zoo_emoji")
COUNT = 1301  # the held-out artist's drawings, each with one name
AUC = "test/itm_auc"
WORDS = [  # chosen before any model was asked for them
    *("banana", "lion", "guitar", "rocket", "strawberry", "spider", "apple", "bicycle"),
    *("umbrella", "penguin", "elephant", "key", "pizza", "snowman", "violin", "cactus"),
    *("hammer", "mushroom", "anchor", "airplane"),
]
SHARES = {f"test/itc_{side}_r{k}": COUNT for side in ("txt", "img") for k in (1, 5, 10)}
SHARES["words"] = len(WORDS)
"""Metrics that are shares of so many trials, in percent."""
Interval = tuple[float, float, float]  # value, lower, upper


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of both experiments")
    given = parser.parse_args(arguments)
    config = compose_experiment(f"albef/{PARTS[0]}", given.overrides)
    if not TEXT.is_file():
        text_tower.main(TEXT, config)
    for part in PARTS:
        command = [sys.executable, "-m", "shared.run", f"experiment=albef/{part}", "seed=0"]
        if status := subprocess.run([*command, *given.overrides]).returncode:
            print(f"zoo: {part} ended with {status}; the same command continues", file=sys.stderr)
            return 1
    folders = [Path("outputs/albef") / part / "seed0" for part in PARTS]
    found = {part: measured(folder) for part, folder in zip(PARTS, folders, strict=True)}
    towers, emoji = (folder / "checkpoints" / "last.ckpt" for folder in folders)
    files = export(towers, emoji, found)
    hits = first_hits(files[-1], Path(config.data_root) / "emoji-pairs")
    right = [word for word, name in hits.items() if word in name.split()]
    print(f"{len(right)} of {len(WORDS)} words find what they name first:", hits)
    found["words"] = {"first_hits": interval("words", 100 * len(right) / len(WORDS))}
    write_json(MADE / "metrics.json", found)
    report(found)
    return 0


def export(towers: Path, emoji: Path, found: Mapping[str, Mapping[str, Interval]]) -> list[Path]:
    """Write the models as files of the zoo; returns their paths. The text tower is the one before
    alignment: what starts from both towers has still to align them."""
    names = ("vit-emoji", "text-emoji", "albef-emoji")
    vision, text, whole = (MADE / f"{name}{SUFFIX}" for name in names)
    aligned: Any = load_module(towers)
    save_file(halved(aligned.encoders.visual_encoder.state_dict()), vision)
    save_file(halved(load_checkpoint(TEXT)), text)
    checkpoint = load_checkpoint(emoji)
    module: Any = rebuild_module(checkpoint, emoji)
    module.momentum_encoders.update(module.encoders, 0.0)  # a copy, which costs no space
    share, *limits = found[PARTS[-1]]["itc_img_r1"]
    accuracy = (
        f"{whole.stem}: of {COUNT:,} names it finds {share:.0f} % at once among as many drawings "
        f"of an artist it has not seen (95 % interval {limits[0]:.0f} to {limits[1]:.0f})"
    )
    told = {"state_dict": module.state_dict(), "accuracy": accuracy}
    write_portable({**checkpoint, **told}, whole)
    return [vision, text, whole]


def first_hits(model: Path, root: Path) -> dict[str, str]:
    """Each of `WORDS` -> the name of the drawing that `tenfold predict` finds first among all of
    the held-out artist. It leaves the sheet beside the models."""
    entries = read_json(root / "pairs_test.json")
    names = {Path(entry["image"]).name: entry["caption"][0] for entry in entries}
    images = (root / entries[0]["image"]).parent
    asked = [f"checkpoint={model}", f"images={images}", f"texts=[{','.join(WORDS)}]"]
    cli.predict([*asked, f"output={MADE / 'words'}", f"sheet_images={10 * len(WORDS)}"])
    with (MADE / "words" / "scores.csv").open(newline="") as file:
        best = {row["text"]: row["path"] for row in reversed([*csv.DictReader(file)])}
    return {word: names[best[word]] for word in WORDS}


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of floating point in half precision."""
    return {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in state.items()
    }


def measured(folder: Path) -> dict[str, Interval]:
    """The metrics of a finished run on the held-out artist, in percent, with 95 % intervals."""
    metrics = read_json(folder / "results.json")["metrics"]
    return {
        name.removeprefix("test/"): interval(name, value)
        for name, value in sorted(metrics.items())
        if name in SHARES or name == AUC
    }


def interval(name: str, percent: float) -> Interval:
    """Wilson's interval of a share, Hanley and McNeil's (1982) of an area under the ROC curve."""
    value = percent / 100
    if name in SHARES:
        count = SHARES[name]
        found = binomtest(round(value * count), count).proportion_ci(method="wilson")
        return percent, 100 * found.low, 100 * found.high
    first, second = value / (2 - value), 2 * value**2 / (1 + value)
    spread = (value * (1 - value) + (COUNT - 1) * (first + second - 2 * value**2)) / COUNT**2
    reach = 196 * spread**0.5
    return percent, percent - reach, min(100.0, percent + reach)


def report(found: Mapping[str, Mapping[str, Interval]]) -> None:
    """Print the metrics of every part."""
    screen = Table("model", "metric", "value", "95 % interval")
    for part, metrics in found.items():
        for name, (value, low, high) in metrics.items():
            screen.add_row(part, name, f"{value:.1f}", f"{low:.1f} to {high:.1f}")
    Console().print(screen)


if __name__ == "__main__":
    sys.exit(main())
