"""`make zoo`: train the small models that come with Tenfold, and compare them with those shipped.

    python -m benchmarks.zoo [--ship] [overrides]

Three parts, each from the one before: the text tower (`text_tower.py`), the experiments
albef/zoo_towers and albef/zoo_emoji. What is finished is kept and what was interrupted goes on, so
that the same command continues. The models then lie in outputs/zoo, with metrics.json of the
held-out artist's drawings and their 95 % intervals; `--ship` puts them in place of those in zoo/.
Exit status: 0 if the shipped metrics lie within the new intervals, 1 if not or a part failed.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from scipy.stats import binomtest

from benchmarks.zoo import text_tower
from shared.checkpoints.official import KeyTable, export_official
from shared.checkpoints.pretrained_text import bert_rules, word_head_rules
from shared.checkpoints.reading import load_checkpoint, load_module, rebuild_module
from shared.checkpoints.writing import write_portable
from shared.checkpoints.zoo import SUFFIX, SUMS, ZOO
from shared.files import read_json, write_json

MADE = Path("outputs/zoo")
TEXT = MADE / "text.safetensors"
PARTS = ("zoo_towers", "zoo_emoji")
METRICS = "metrics.json"
COUNT = 1301  # the held-out artist's drawings, each with one name
SHARES = {f"test/itc_{side}_r{k}": COUNT for side in ("txt", "img") for k in (1, 5, 10)}
"""Metrics that are shares of so many trials, in percent."""
AUC = "test/itm_auc"
Interval = tuple[float, float, float]  # value, lower, upper


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ship", action="store_true", help="replace the models in zoo/")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of both experiments")
    given = parser.parse_args(arguments)
    if not TEXT.is_file():
        text_tower.main(TEXT)
    for part in PARTS:
        command = [sys.executable, "-m", "shared.run", f"experiment=albef/{part}", "seed=0"]
        if status := subprocess.run([*command, *given.overrides]).returncode:
            print(f"zoo: {part} ended with {status}; the same command continues", file=sys.stderr)
            return 1
    folders = [Path("outputs/albef") / part / "seed0" for part in PARTS]
    files = export(*(folder / "checkpoints" / "last.ckpt" for folder in folders))
    found = {part: measured(folder) for part, folder in zip(PARTS, folders, strict=True)}
    write_json(MADE / METRICS, found)
    shipped = read_json(ZOO / METRICS) if (ZOO / METRICS).is_file() else {}
    agree = report(found, shipped)
    if given.ship:
        ship([*files, MADE / METRICS])
        return 0
    return 0 if agree else 1


def export(towers: Path, emoji: Path) -> list[Path]:
    """Write the models of both runs as files of the zoo; returns their paths."""
    files = [MADE / f"{name}{SUFFIX}" for name in ("vit-emoji", "text-emoji", "albef-emoji")]
    aligned: Any = load_module(towers)
    encoders = aligned.encoders
    vision = encoders.visual_encoder.state_dict()
    rules = [*bert_rules("", "text_encoder."), *word_head_rules("cls.", "word_head.")]
    other = ("visual_encoder", "vision_proj", "text_proj")
    rest = {f"{name}.{{rest}}": "no part of the text tower" for name in other}
    text = export_official(encoders, KeyTable(rules, fresh=rest))
    for path, state in zip(files, (vision, text), strict=False):
        save_file({key: half(value) for key, value in state.items()}, path)
    checkpoint = load_checkpoint(emoji)
    module: Any = rebuild_module(checkpoint, emoji)
    module.momentum_encoders.update(module.encoders, 0.0)  # a copy, which costs no space
    write_portable({**checkpoint, "state_dict": module.state_dict()}, files[-1])
    return files


def half(value: Any) -> Any:
    """A tensor in half precision, if it is of floating point."""
    return (value.half() if value.is_floating_point() else value).contiguous()


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
    table, agree = Table("model", "metric", "value", "95 % interval", "shipped"), True
    for part, metrics in found.items():
        for name, (value, low, high) in metrics.items():
            there = shipped.get(part, {}).get(name)
            inside = there is not None and low <= there[0] <= high
            agree &= inside
            known = "-" if there is None else f"{there[0]:.1f}{'' if inside else ' (outside)'}"
            table.add_row(part, name, f"{value:.1f}", f"{low:.1f} to {high:.1f}", known)
    Console().print(table)
    return agree


def ship(files: Sequence[Path]) -> None:
    """Put files in place of those in zoo/, with their checksums."""
    for path in files:
        shutil.copyfile(path, ZOO / path.name)
    models = [path for path in files if path.suffix == SUFFIX]
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in models)
    (ZOO / SUMS).write_text("".join(sums))
    print(f"shipped: {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    sys.exit(main())
