"""ALPRO's data sets by their configs: what a batch is, whole batches of videos and pictures, the
columns of the web's files, and questions with numbered answers."""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmarks.miniatures.building import write_json, write_lines, write_rows, write_shards
from benchmarks.miniatures.synthetic_videos import videos
from methods.alpro.data import WebPairs
from shared.data.errors import DataCorruptError
from shared.data.image_text.clips import read_numbered_answers
from shared.data.loading.streams import Alternating, Permutations, StreamBatches
from shared.experiments import CONF
from shared.nn.building import build

pytest.importorskip("av")
FRAMES, SIZE = 4, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    videos(folder, train=9, test=3)
    return folder


@cache
def plain(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"data={name}"])


def config(name: str, root: Path, prefix: str, **changes: Any) -> dict[str, Any]:
    """`conf/data/<name>.yaml` of the artificial videos, smaller."""
    composed = plain(name).copy()
    smaller: dict[str, Any] = {
        "files": {split: f"{root}/{prefix}_{split}.jsonl" for split in ("train", "val", "test")},
        "image_root": f"{root}/videos",
        "vocab": f"{root}/vocab.txt",
        "frames": FRAMES,
        "suffix": ".mp4",
        "augmentation": {"size": SIZE},
        "batch_size": 3,
        "num_workers": 0,
    }
    if name == "alpro_pretrain":
        files = {"files": {"train": f"{root}/stills_train.json"}, "image_root": str(root)}
        smaller |= {"annotation_index": None, "stills": files}
        composed.data.augmentation.recipes.train[0].side = SIZE + 4
    composed.data = OmegaConf.merge(composed.data, smaller, changes)
    return OmegaConf.to_container(composed.data, resolve=True)  # type: ignore[return-value]


def fitted(*arguments: Any, **changes: Any) -> Any:
    data = build(config(*arguments, **changes), object)
    data.setup("fit")
    return data


def test_batches_of_one_kind_each(root: Path) -> None:
    data = fitted("alpro_pretrain", root, "pairs")
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    kinds = {batch["kind"] for batch in batches}
    assert kinds == {"video", "image"}
    for batch in batches:
        assert batch["images"].shape == (3, FRAMES, 3, SIZE, SIZE)
        assert batch["input_ids"][:, 0].tolist() == [2, 2, 2]
        assert (batch["input_ids"] == 3).sum() == 3  # [SEP]
        equal = (batch["images"] == batch["images"][:, :1]).all()
        assert bool(equal) == (batch["kind"] == "image")
    (evaluated,) = data.val_dataloader()
    assert "kind" not in evaluated
    assert evaluated["text_image"].tolist() == [0, 1, 2]
    alone = fitted("alpro_pretrain", root, "pairs", stills=None)
    assert len(alone.train_dataloader()) == 3


def test_every_pass_shows_other_frames_and_changes_them_alike(root: Path) -> None:
    still = {"recipes": {"train": [{"op": "resize"}]}}
    data = fitted("alpro_msrvtt_retrieval", root, "pairs", cache_images=True, augmentation=still)
    again = fitted("alpro_msrvtt_retrieval", root, "pairs", augmentation=still)
    shown = []
    for epoch in range(2):
        for one in (data, again):
            loader = one.train_dataloader()
            loader.set_epoch(epoch)
            batches = list(loader)
            order = torch.cat([batch["indices"] for batch in batches]).argsort()
            shown.append(torch.cat([batch["images"] for batch in batches])[order])
    torch.testing.assert_close(shown[0], shown[1])  # kept in memory or read anew
    torch.testing.assert_close(shown[2], shown[3])
    assert not torch.equal(shown[0], shown[2])


def test_frames_of_a_clip_are_augmented_alike(root: Path) -> None:
    data = build(
        config("alpro_msrvtt_qa", root, "qa", answer_list=f"{root}/ans2label.json"), object
    )
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    keys = np.arange(8, dtype=np.uint64)
    clip = data.transform([picture] * 16, "train", np.tile(keys, 2)).unflatten(0, (2, 8))
    torch.testing.assert_close(clip[0], clip[1])
    assert len({view.sum().item() for view in clip[0]}) > 4


def test_lines_about_one_video_are_one_sample(root: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (root / "pairs_val.jsonl").read_text().splitlines()]
    more = [rows[0], rows[1], rows[0] | {"caption": "a photo"}, rows[2]]
    write_rows(tmp_path / "more.jsonl", more)
    files = {"train": str(tmp_path / "more.jsonl"), "val": str(tmp_path / "more.jsonl")}
    data = fitted("alpro_msrvtt_retrieval", root, "pairs", files=files, batch_size=3)
    assert len(data.source) == 3
    assert len(data.train_dataloader()) == 1
    texts = set()
    for epoch in range(8):
        batch = data.texts([data.source.entry(0)], np.array([epoch], np.uint64), "train")
        texts.add(tuple(batch["input_ids"][0].tolist()))
    assert len(texts) == 2
    (evaluated,) = data.val_dataloader()
    assert evaluated["indices"].tolist() == [0, 1, 3]
    assert evaluated["text_image"].tolist() == [0, 0, 1, 3]


def test_the_columns_of_the_webs_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(root / "videos")
    lines = ["videoid,page_dir,name", 'clip0000,clips,"a photo, of a circle"', "clip0001,clips,red"]
    write_lines(tmp_path / "web.csv", lines)
    official = [{"video_id": "clips/clip0000", "text": " red  ", "txt_len": 79}]
    long = {"video_id": "clips/clip0001", "text": "red", "txt_len": 80}
    write_json(tmp_path / "table.json", [*official, long])
    where = {"image_root": str(tmp_path), "stills": None, "batch_size": 1, "val_split": None}
    for name, count in (("web.csv", 2), ("table.json", 1)):
        files = {"train": str(tmp_path / name)}
        data = build(config("alpro_pretrain", root, "pairs", files=files, **where), WebPairs)
        with pytest.warns(UserWarning, match="txt_len is 80") if count == 1 else nullcontext():
            data.setup("fit")
        assert len(data.source) == count
        entry = data.source.entry(0)
        assert data.captions(entry) == [["a photo, of a circle"], ["red"]][count == 1]
        assert next(iter(data.train_dataloader()))["images"].shape[:2] == (1, FRAMES)
    for wrong in ({"video_id": [1], "text": "a"}, {"video_id": 1, "text": 2}, {"text": "a"}):
        write_json(tmp_path / "wrong.json", [wrong])
        files = {"train": str(tmp_path / "wrong.json")}
        data = build(config("alpro_pretrain", root, "pairs", files=files, **where), WebPairs)
        with (
            pytest.warns(UserWarning, match="expected one of"),
            pytest.raises(DataCorruptError, match="no training entry can be used"),
        ):
            data.setup("fit")


def test_videos_of_shards(root: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (root / "pairs_train.jsonl").read_text().splitlines()]
    samples = []
    for row in rows[:4]:
        video = (root / "videos" / f"{row['clip_name']}.mp4").read_bytes()
        samples.append({"mp4": video, "txt": row["caption"].encode()})
    write_shards(tmp_path, "web", 2, samples)
    shards = {"shards": f"{tmp_path}/web-*.tar", "stills": None, "batch_size": 2}
    alone = fitted("alpro_pretrain", root, "pairs", **shards, files={"train": None})
    mixed = fitted("alpro_pretrain", root, "pairs", **shards)
    assert (len(alone.source), len(mixed.source)) == (4, 13)
    for data in (alone, mixed):
        batches = list(data.train_dataloader())
        assert all(batch["images"].shape == (2, FRAMES, 3, SIZE, SIZE) for batch in batches)
    choice = alone.source.choice
    assert choice.count == FRAMES
    one = alone.source.group(0, 3)
    other = fitted("alpro_pretrain", root, "pairs").source.group(0, 3)
    assert np.array_equal(one, other)  # the same video, the same draw


def test_questions_with_numbered_answers(root: Path, tmp_path: Path) -> None:
    answers = {"answer_list": f"{root}/ans2label.json"}
    data = fitted("alpro_msrvtt_qa", root, "qa", **answers)
    assert data.answers[:2] == ["red", "green"]
    batch = next(iter(data.train_dataloader()))
    told = [[data.answers[label]] for label in batch["labels"]]
    assert told == batch["answers"]
    known = {"circle": 1, "square": 0}
    write_json(tmp_path / "few.json", known)
    data = build(config("alpro_msvd_qa", root, "qa", answer_list=f"{tmp_path}/few.json"), object)
    with pytest.warns(UserWarning, match=r"its answer '\w+' is not in .*few\.json"):
        data.setup("fit")
    assert {data.entries("train")[n]["answer"] for n in data.source.members} <= known.keys()
    (evaluated,) = data.val_dataloader()
    rows = zip(evaluated["labels"].tolist(), evaluated["answers"], strict=True)
    assert all(label == known.get(answer, -1) for label, (answer,) in rows)
    assert -1 in evaluated["labels"]


@pytest.mark.parametrize("wrong", [{}, {"a": 1}, {"a": 0, "b": 0}, {"a": "0"}, {"a": True}, [], 3])
def test_answers_that_are_not_numbered(wrong: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", wrong)
    with pytest.raises(DataCorruptError, match=r"a\.json"):
        read_numbered_answers(tmp_path / "a.json")


def test_alternating_goes_on_where_it_stopped() -> None:
    parts = [StreamBatches([Permutations(0, size)], [2]) for size in (12, 5)]
    both = Alternating(parts, seed=3, group=2)
    assert len(both) == 8
    seen: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for epoch in range(40):
        whole = list(both.batches(epoch))
        assert [n for n, _ in whole[::2]] == [n for n, _ in whole[1::2]]
        for start in (1, 4, 7):
            rest = list(both.batches(epoch, start))
            for (number, (draws,)), (wanted, (others,)) in zip(rest, whole[start:], strict=True):
                assert number == wanted
                assert draws.positions.tolist() == others.positions.tolist()
                assert draws.passes.tolist() == others.passes.tolist()
        for number, (draws,) in whole:
            seen[number] += zip(draws.positions.tolist(), draws.passes.tolist(), strict=True)
    assert all(len(set(rows)) == len(rows) for rows in seen.values())  # each draw is augmented anew
    assert 0.35 < len(seen[1]) / sum(map(len, seen.values())) < 0.65  # whatever their sizes


def test_worker_processes_and_ranks_change_nothing(root: Path) -> None:
    alone = list(fitted("alpro_pretrain", root, "pairs", batch_size=2).train_dataloader())
    working = fitted("alpro_pretrain", root, "pairs", batch_size=2, num_workers=1)
    for one, other in zip(alone, working.train_dataloader(), strict=True):
        assert one["kind"] == other.pop("kind")
        torch.testing.assert_close({name: one[name] for name in other}, other)
    halves = []
    for rank in range(2):
        data = build(config("alpro_pretrain", root, "pairs", batch_size=2), WebPairs)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        data.setup("fit")
        halves.append(list(data.train_dataloader()))
    for whole, *parts in zip(alone, *halves, strict=True):
        assert {part["kind"] for part in parts} == {whole["kind"]}
        torch.testing.assert_close(torch.cat([part["images"] for part in parts]), whole["images"])
