"""`make zoo`: train the small models that come with Tenfold, and compare them with those shipped.

    python -m benchmarks.zoo [--ship] [overrides]

Four parts: the vision tower (`vision_tower.py`), the text tower (`text_tower.py`), from both the
experiment albef/zoo_scenes, and from that albef/zoo_emoji. What is finished is kept and what was
interrupted goes on (but for the text tower, which takes some minutes and begins anew), so that the
same command continues. The models then lie in outputs/zoo, with metrics.json of the held-out
artist's drawings and their 95 % intervals; `--ship` puts them in place of those in zoo/. With one
thread, as configured, equal processors and versions of torch give equal models, to the last byte.
Exit status: 0 if the shipped metrics lie within the new intervals, 1 if not or a part failed.
"""

import argparse
import csv
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Screen
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.zoo import text_tower, vision_tower
from benchmarks.zoo.projections import join, projection_of
from shared import cli
from shared.checkpoints.reading import load_checkpoint, rebuild_module
from shared.checkpoints.writing import write_portable
from shared.checkpoints.zoo import SUFFIX, SUMS, ZOO, checksums
from shared.composing import compose_experiment
from shared.files import read_json, write_json
from shared.showing import table

MADE = Path("outputs/zoo")
TEXT = MADE / "text.safetensors"
VISION = MADE / "vision.safetensors"
TOWERS = MADE / "towers.ckpt"
PARTS = ("zoo_scenes", "zoo_emoji")  # of ALBEF; the last is what is shipped
PART = PARTS[-1]
METRICS = "metrics.json"
COUNT = 1301  # the held-out artist's drawings, each with one name
AUC = "test/itm_auc"
WORDS = [  # chosen before any model was asked for them
    *("banana", "lion", "guitar", "rocket", "strawberry", "spider", "apple", "bicycle"),
    *("umbrella", "penguin", "elephant", "key", "pizza", "snowman", "violin", "cactus"),
    *("hammer", "mushroom", "anchor", "airplane"),
]
SHARES = {
    f"test/{kind}{side}_r{k}": COUNT
    for kind, side, k in product(("itc_", ""), ("txt", "img"), (1, 5, 10))
}
SHARES |= {"names": COUNT, "words": len(WORDS)}
"""Metrics that are shares of so many trials, in percent."""
CARDS = {"vit-emoji": ["vision"], "albef-emoji": [PART, "words"]}
MEASURED = "## Metrics\n"
Interval = tuple[float, float, float]  # value, lower, upper


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ship", action="store_true", help="replace the models in zoo/")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the experiment")
    given = parser.parse_args(arguments)
    config = compose_experiment(f"albef/{PARTS[0]}", given.overrides)
    torch.set_num_threads(config.threads)
    if not VISION.is_file():
        vision_tower.main(VISION, config)
    if not TEXT.is_file():
        text_tower.main(TEXT, config, load_checkpoint(projection_of(VISION))["names"])
    if not TOWERS.is_file():
        join(VISION, TEXT, config, TOWERS)
    for part in PARTS:
        command = [sys.executable, "-m", "shared.run", f"experiment=albef/{part}", "seed=0"]
        if status := subprocess.run([*command, *given.overrides]).returncode:
            print(f"zoo: {part} ended with {status}; the same command continues", file=sys.stderr)
            return 1
    folder = Path("outputs/albef") / PART / "seed0"
    seen = read_json(vision_tower.metrics_of(VISION))
    found = {"vision": {name: interval(name, value) for name, value in seen.items()}}
    found[PART] = measured(folder)
    files = export(folder / "checkpoints" / "last.ckpt", found)
    found["words"] = {}
    entries = read_json(Path(config.data_root) / "emoji-pairs" / "pairs_test.json")
    every = {Path(config.data_root) / "emoji-pairs" / e["image"]: e["caption"][0] for e in entries}
    shown = {path: path.stem.replace("-", " ") for path in (ZOO / "drawings").glob("*.png")}
    for among, names in (("all", every), ("shown", shown)):
        hits = first_hits(files[-1], names, MADE / "words" / among)
        right = [word for word, name in hits.items() if word == noun(name)]
        print(f"{len(right)} of {len(WORDS)} words find what they name among {len(names)}:", hits)
        found["words"][f"first_hits_{among}"] = interval("words", 100 * len(right) / len(WORDS))
    write_json(MADE / METRICS, found)
    shipped = read_json(ZOO / METRICS) if (ZOO / METRICS).is_file() else {}
    for path in files:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == checksums().get(path.stem)
        print(f"{path.name}: {'the same as' if same else 'other weights than'} the shipped one")
    agree = report(found, shipped)
    if given.ship:
        ship([*files, MADE / METRICS], found, Path(config.data_root) / "emoji-pairs")
        return 0
    return 0 if agree else 1


def export(emoji: Path, found: Mapping[str, Mapping[str, Interval]]) -> list[Path]:
    """Write the models as files of the zoo; returns their paths. The towers are those before ALBEF:
    what starts from both has still to align them."""
    names = ("vit-emoji", "text-emoji", "albef-emoji")
    vision, text, whole = (MADE / f"{name}{SUFFIX}" for name in names)
    save_file(halved(load_checkpoint(VISION)), vision)
    save_file(halved(load_checkpoint(TEXT)), text)
    checkpoint = load_checkpoint(emoji)
    module: Any = rebuild_module(checkpoint, emoji)
    module.momentum_encoders.update(module.encoders, 0.0)  # a copy, which costs no space
    share, *limits = found[PART]["itc_img_r1"]
    accuracy = (
        f"{whole.stem}: of {COUNT:,} names it finds {share:.0f} % at once among as many drawings "
        f"of an artist it has not seen (95 % interval {limits[0]:.0f} to {limits[1]:.0f})"
    )
    told = {"state_dict": module.state_dict(), "accuracy": accuracy}
    write_portable({**checkpoint, **told}, whole)
    return [vision, text, whole]


def first_hits(model: Path, names: Mapping[Path, str], output: Path) -> dict[str, str]:
    """Each of `WORDS` -> the name of the drawing that `tenfold predict` finds first among those of
    one folder. It leaves the sheet in `output`."""
    asked = [f"checkpoint={model}", f"images={next(iter(names)).parent}"]
    asked += [f"texts=[{','.join(WORDS)}]", f"output={output}", f"sheet_images={10 * len(WORDS)}"]
    cli.predict(asked)
    with (output / "scores.csv").open(newline="") as file:
        best = {row["text"]: row["path"] for row in reversed([*csv.DictReader(file)])}
    called = {path.name: name for path, name in names.items()}
    return {word: called[best[word]] for word in WORDS}


def noun(name: str) -> str:
    """The word that says what a drawing's name is a kind of: a red apple is an apple, a spider web
    no spider, a beach with umbrella a beach."""
    return name.partition(" with ")[0].split()[-1]


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


def report(
    found: Mapping[str, Mapping[str, Interval]], shipped: Mapping[str, Mapping[str, Interval]]
) -> bool:
    """Print both; returns whether every shipped value lies within the new interval."""
    screen, agree = Screen("model", "metric", "value", "95 % interval", "shipped"), True
    for part, metrics in found.items():
        for name, (value, low, high) in metrics.items():
            there = shipped.get(part, {}).get(name)
            inside = there is not None and low <= there[0] <= high
            agree &= inside
            known = "-" if there is None else f"{there[0]:.1f}{'' if inside else ' (outside)'}"
            screen.add_row(part, name, f"{value:.1f}", f"{low:.1f} to {high:.1f}", known)
    Console().print(screen)
    return agree


def ship(
    files: Sequence[Path], found: Mapping[str, Mapping[str, Interval]], drawings: Path
) -> None:
    """Put files in place of those in zoo/, with their checksums, the metrics of their cards, and
    some of the held-out artist's drawings."""
    for path in files:
        shutil.copyfile(path, ZOO / path.name)
    models = [path for path in files if path.suffix == SUFFIX]
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in models)
    (ZOO / SUMS).write_text("".join(sums))
    for name, parts in CARDS.items():
        metrics = [(f"{part} {n}", *v) for part in parts for n, v in found[part].items()]
        rows = [[n, f"{value:.1f}", f"{low:.1f} to {high:.1f}"] for n, value, low, high in metrics]
        card, header = ZOO / f"{name}.md", ["metric, in percent", "value", "95 % interval"]
        about = card.read_text().partition(MEASURED)[0]
        card.write_text(f"{about}{MEASURED}\n{table(header, rows)}\n")
    (ZOO / "drawings").mkdir(exist_ok=True)
    common, every = (read_json(drawings / f"{n}pairs_test.json") for n in ("common_", ""))
    for entry in [*common[::3], *(e for e in every if noun(e["caption"][0]) in WORDS)]:
        name = entry["caption"][0].replace(" ", "-")
        shutil.copyfile(drawings / entry["image"], ZOO / "drawings" / f"{name}.png")
    print(f"shipped: {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    sys.exit(main())
