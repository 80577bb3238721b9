"""The web's texts of the emoji after CapFilt, by a captioner and a filter that a run has trained.

`bootstrapped` is the entry, for use as a `source`: of the arms of BLIP's claim, which differ in
what of the web they learn from.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from benchmarks.miniatures.building import (
    Provenance,
    build_once,
    generator_of,
    mixed,
    write_json,
)
from benchmarks.miniatures.emoji.web_texts import web_texts
from methods.blip.capfilt import cli
from shared.data.errors import DataNotFoundError
from shared.files import read_json

VERSION = 3  # raise it with any change of the lists
PREFIX = "common_"  # the 300 everyday objects


def bootstrapped(
    root: str | Path,
    web_root: str | Path,
    pairs_root: str | Path,
    captioner: str | Path,
    filter: str | Path,
    threshold: float = 0.5,
    beams: int = 0,
    seed: int = 0,
    required: bool = False,
) -> Provenance:
    """Make `web_texts` present in `web_root`, and from it in `root` by `tenfold-capfilt`, whose
    filter keeps texts above the `threshold`: `web_kept.json`, the web's pairs that the filter
    believes; `synthetic.json`, what the captioner writes, by a search with so many `beams` or by
    nucleus sampling (0), `synthetic_kept.json`, and `capfilt/`, the tool's output with its card and
    sheet. `by_lot.json` has as many of the web's and of the captioner's texts as the filter keeps,
    but drawn by lot.

    The provenance says what the filter is worth: `filter_auc`, the area under its ROC curve for the
    web's right and wrong texts, which it has never been told; and shares in percent. Before there
    are checkpoints of captioner and filter, only `web_texts` is made, or, if they are `required`,
    DataNotFoundError names the first that is missing.
    """
    models = [Path(captioner), Path(filter)]
    missing = [path for path in models if not path.is_file()]
    if missing and required:
        trained = "blip/mini, then blip/mini_captioner and blip/mini_filter, with the same seed"
        raise DataNotFoundError(f"{missing[0]} not found: first run {trained}")
    made, root = web_texts(web_root, pairs_root), Path(root)
    if missing:
        return made
    recipe: dict[str, Any] = {"version": VERSION, "seed": seed, "threshold": threshold}
    recipe["beams"] = beams
    recipe["models"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in models]
    recipe["web"] = made["emoji-web-texts"]["files"][f"{PREFIX}web_train.json"]

    def build(folder: Path) -> None:
        out, web = folder / "capfilt", Path(web_root) / f"{PREFIX}web_train.json"
        command = ["run", str(web), "--image-root", str(pairs_root), "--out", str(out)]
        command += ["--captioner", str(captioner), "--filter", str(filter), "--seed", str(seed)]
        command += ["--threshold", str(threshold), "--beams", str(beams)]
        command += ["--workers", "0", "--batch-size", "64", "--licence", "CC-BY-SA-4.0"]
        if status := cli.main(command):
            raise RuntimeError(f"tenfold-capfilt ended with {status}")
        texts = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
        lists: dict[str, list[dict[str, str]]] = defaultdict(list)
        for text in texts:
            pair = {"image": text["image"], "caption": text["caption"]}
            lists[text["origin"]].append(pair)
            lists[f"{text['origin']}_kept"] += [pair] if text["kept"] else []
        for name in ("web_kept", "synthetic", "synthetic_kept"):
            write_json(folder / f"{name}.json", lists[name], indent=0)
        lot, drawn = generator_of(seed, "by lot"), []
        for name in ("web", "synthetic"):
            drawn += mixed(lists[name], lot)[: len(lists[f"{name}_kept"])]
        write_json(folder / "by_lot.json", drawn, indent=0)
        wrong = read_json(Path(web_root) / "secret" / f"{PREFIX}web_mask.json")
        write_json(folder / "filter.json", quality(texts, {int(index) for index in wrong}))

    files = build_once(root, "bootstrapped", recipe, build)
    about = {"files": files, "licence": made["emoji-web-texts"]["licence"]}
    return {**made, "emoji-capfilt": about | read_json(root / "filter.json")}


def quality(texts: list[dict[str, Any]], wrong: set[int]) -> dict[str, float]:
    """What a filter is worth, in percent, by the entries whose web text is `wrong`."""
    web = [text for text in texts if text["origin"] == "web"]
    own = [text for text in texts if text["origin"] == "synthetic"]
    right = [text["entry"] not in wrong for text in web]
    kept = {
        "right": [text["kept"] for text, good in zip(web, right, strict=True) if good],
        "wrong": [text["kept"] for text, good in zip(web, right, strict=True) if not good],
        "synthetic": [text["kept"] for text in own],
    }
    shares = {f"kept_{name}": 100 * sum(of) / len(of) for name, of in kept.items()}
    return {"filter_auc": 100 * roc_auc_score(right, [text["score"] for text in web]), **shares}
