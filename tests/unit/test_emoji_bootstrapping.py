"""The emoji's texts of the web after CapFilt: what each list holds, without trained models."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from emoji_toy import read

from benchmarks.miniatures.emoji import bootstrapping as module
from benchmarks.miniatures.emoji.bootstrapping import bootstrapped, quality

ENTRIES = 20
TOLD = ["web", "synthetic"]
KEPT = {"web": 7, "synthetic": 12}  # the filter's, the first ones


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders and checkpoints whose tool is a made-up one and whose web has ten wrong texts."""
    (tmp_path / "web/secret").mkdir(parents=True)
    wrong = {str(index): {"clean": "", "kind": "file"} for index in range(10, ENTRIES)}
    (tmp_path / "web/secret/common_web_mask.json").write_text(json.dumps(wrong))
    for name in ("captioner", "filter"):
        (tmp_path / name).write_bytes(name.encode())
    made = {"emoji-web-texts": {"files": {"common_web_train.json": "0" * 64}, "licence": "CC"}}
    monkeypatch.setattr(module, "web_texts", lambda *_: made)
    monkeypatch.setattr(module.cli, "main", written)
    paths = {"root": "made", "web_root": "web", "pairs_root": "pairs"}
    paths |= {"captioner": "captioner", "filter": "filter"}
    return {key: tmp_path / name for key, name in paths.items()}


def written(command: Sequence[str]) -> int:
    out = Path(command[command.index("--out") + 1])
    out.mkdir()
    rows = [told(entry, origin) for entry in range(ENTRIES) for origin in TOLD]
    (out / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def told(entry: int, origin: str) -> dict[str, Any]:
    text = {"entry": entry, "image": f"{entry}.png", "caption": f"{origin} {entry}"}
    return text | {"origin": origin, "score": -entry, "kept": entry < KEPT[origin]}


def origins(pairs: list[dict[str, str]]) -> Counter[str]:
    assert all(pair["image"] == f"{pair['caption'].split()[1]}.png" for pair in pairs)
    return Counter(pair["caption"].split()[0] for pair in pairs)


def test_the_lot_draws_as_many_texts_of_each_kind_as_the_filter_keeps(
    folders: dict[str, Path],
) -> None:
    bootstrapped(**folders)
    root = folders["root"]
    assert origins(read(root, "web_kept")) == {"web": KEPT["web"]}
    assert origins(read(root, "synthetic_kept")) == {"synthetic": KEPT["synthetic"]}
    assert origins(read(root, "synthetic")) == {"synthetic": ENTRIES}
    lot = read(root, "by_lot")
    assert origins(lot) == KEPT
    assert len({pair["caption"] for pair in lot}) == sum(KEPT.values())
    believed = [*read(root, "web_kept"), *read(root, "synthetic_kept")]
    assert any(pair not in believed for pair in lot)


def test_the_lot_follows_the_seed_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    lots = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        root = tmp_path / name
        bootstrapped(**{**folders, "root": root}, seed=seed)
        lots.append(read(root, "by_lot"))
    assert lots[0] == lots[1] != lots[2]


def test_the_provenance_says_what_the_filter_is_worth(folders: dict[str, Path]) -> None:
    about = bootstrapped(**folders)["emoji-capfilt"]
    assert about["filter_auc"] == 100
    shares = {name: about[f"kept_{name}"] for name in ("right", "wrong", "synthetic")}
    assert shares == {"right": 70, "wrong": 0, "synthetic": 60}
    assert about["licence"] == "CC"
    assert "by_lot.json" in about["files"]


def test_a_filter_that_believes_what_is_wrong_is_worth_nothing() -> None:
    texts = [told(entry, origin) for entry in range(ENTRIES) for origin in TOLD]
    assert quality(texts, set(range(10)))["filter_auc"] == 0


def test_a_tool_that_fails_leaves_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.cli, "main", lambda _: 1)
    with pytest.raises(RuntimeError, match="tenfold-capfilt ended with 1"):
        bootstrapped(**folders)
    assert not (folders["root"] / "by_lot.json").exists()
    assert not (folders["root"] / "manifests").exists()
