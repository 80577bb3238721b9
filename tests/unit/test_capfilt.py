"""CapFilt on small pairs: rule, formats, settings, shards, resumption, the journal, memory."""

import json
import tarfile
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms import v2

from methods.blip.capfilt import cli
from methods.blip.capfilt.networks import load_models
from methods.blip.capfilt.running import judged
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.journal import Journal, read
from shared.data.captioned.json_pairs import JsonPairs
from shared.data.captioned.records import blocks
from shared.data.captioned.shards import shard_of
from shared.data.errors import WorkError
from shared.data.image_text.shards import ShardSamples
from tests.unit import capfilt_toy as toy

Run = Callable[..., tuple[int, str]]
INPUTS: dict[str, Callable[[Path], Path]] = {
    "list": lambda folder: toy.write_json(folder, 20),
    "lines": lambda folder: toy.write_json(folder, 20, lines=True),
    "shards": lambda folder: toy.write_shards(folder, [9, 1, 10]),
    "folder": lambda folder: toy.write_folder(folder, 20),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("in") / name) for name, make in INPUTS.items()}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command with the stand-ins: its exit status, and all that it printed."""
    monkeypatch.setattr(cli, "load_models", toy.toy_models)
    monkeypatch.setattr(
        "shared.tools.command.git_state", lambda: {"git_commit": "abc", "git_dirty": False}
    )

    def command(*words: Any) -> tuple[int, str]:
        defaults = {"--captioner": "c", "--filter": "f", "--batch-size": 4, "--workers": 0}
        more = (
            []
            if words[0] == "merge"
            else [w for o in defaults.items() if o[0] not in words for w in o]
        )
        status = cli.main([str(word) for word in [*words, *more]])
        out, error = capsys.readouterr()
        return status, out + error

    return command


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", INPUTS)
def test_each_text_is_judged_alone_and_pairs_come_in_the_inputs_format(inputs, run, tmp_path, kind):
    out = tmp_path / "out"
    status, said = run("run", inputs[kind], "--out", out, "--licence", "CC-BY")
    assert status == 0, said
    captions = lines(out / "captions.jsonl")
    assert [line["entry"] for line in captions] == sorted([*range(20)] * 2)
    assert [line["origin"] for line in captions] == ["web", "synthetic"] * 20
    assert all(line["kept"] == (line["score"] > 0.5) for line in captions)
    kept = [line for line in captions if line["kept"]]
    assert {len([k for k in kept if k["entry"] == entry]) for entry in range(20)} == {0, 1, 2}

    pairs = written(out, kind)
    assert sorted(pairs) == sorted((line["image"], line["caption"]) for line in kept)
    card = json.loads((out / "card.json").read_text())
    assert (card["entries"], card["pairs"], card["licence"]) == (20, len(kept), "CC-BY")
    web = [line["kept"] for line in captions if line["origin"] == "web"]
    assert card["texts"]["web"]["accept_rate"] == round(sum(web) / 20, 4)
    assert sum(card["texts"]["web"]["scores"]) == 20
    assert card["models"]["filter"] == {"name": "filter", "sha256": "f"}
    assert f"run {inputs[kind]} --captioner c --filter f" in card["command"]
    assert "--workers" not in card["command"]
    assert "accept rate" in (out / "card.md").read_text()
    assert f"{len(kept)} pairs" in said
    sheet = (out / "sheet.html").read_text()
    assert "<h2>web text dropped, synthetic text kept</h2>" in sheet
    assert sheet.count("data:image/jpeg;base64,") == 20


def written(out: Path, kind: str) -> list[tuple[str, str]]:
    """Image and text of each pair of an output, read as its format is read elsewhere."""
    if kind in ("list", "lines"):
        path = out / ("pairs.json" if kind == "list" else "pairs.jsonl")
        entries = json.loads(path.read_text()) if kind == "list" else lines(path)
        assert all(e["image"] == f"images/{e['image_id']:05}.jpg" for e in entries)
        return [(entry["image"], entry["caption"]) for entry in entries]
    if kind == "folder":
        texts = sorted((out / "pairs").rglob("*.txt"))
        named = [(path, path.with_suffix(".webp")) for path in texts]
        assert all(
            image.read_bytes() == toy.image(int(image.name[:5]), "WEBP") for _, image in named
        )
        origins = [(image.relative_to(out / "pairs"), text.read_text()) for text, image in named]
        return [
            (str(image).replace("-web", "").replace("-synthetic", ""), t) for image, t in origins
        ]
    found = []
    for shard in sorted((out / "pairs").glob("*.tar")):
        with tarfile.open(shard) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive}
        for name, content in files.items():
            key, suffix = name.split(".")
            if suffix == "png":
                assert content == toy.image(int(key[:6]), "PNG")
                text = (
                    files.get(f"{key}.txt") or json.loads(files[f"{key}.json"])["caption"].encode()
                )
                found.append((f"{shard.name}/{key.split('-')[0]}", text.decode()))
    return found


def test_the_shards_are_read_by_our_own_reader(inputs, run, tmp_path):
    assert run("run", inputs["shards"], "--out", tmp_path / "out")[0] == 0
    shards = sorted((tmp_path / "out" / "pairs").glob("*.tar"))
    samples = ShardSamples([str(shard) for shard in shards], index_folder=tmp_path / "index")
    assert len(samples) == json.loads((tmp_path / "out/card.json").read_text())["pairs"]
    assert samples.read(0).shape == (14, 20, 3)


@pytest.mark.parametrize(
    ("options", "origins", "all_kept"),
    [
        (["--no-web"], {"synthetic"}, False),
        (["--filter-only"], {"web"}, False),
        (["--caption-only"], {"web", "synthetic"}, True),
        (["--caption-only", "--no-web"], {"synthetic"}, True),
        (["--threshold", 0], {"web", "synthetic"}, True),
    ],
)
def test_settings_say_which_texts_may_stay(inputs, run, tmp_path, options, origins, all_kept):
    assert run("run", inputs["list"], "--out", tmp_path, *options)[0] == 0
    captions = lines(tmp_path / "captions.jsonl")
    assert {line["origin"] for line in captions} == origins
    assert all(line["kept"] for line in captions) == all_kept
    assert (captions[0]["score"] is None) == ("--caption-only" in options)


def test_what_belongs_to_an_entry_with_several_texts(run, tmp_path):
    path = toy.write_json(tmp_path / "in", 2)
    entries = json.loads(path.read_text())
    entries[0]["caption"] = ["one cat", "two dogs", "", 3]
    path.write_text(json.dumps(entries))
    assert run("run", path, "--out", tmp_path / "out", "--max-bad", 0.5)[0] == 0
    first = [line for line in lines(tmp_path / "out/captions.jsonl") if line["entry"] == 0]
    assert [line.get("origin") for line in first] == ["web", "web-2", "synthetic", None]
    assert first[-1]["fault"] == "no word: ''"


@pytest.mark.parametrize("kind", INPUTS)
def test_equal_bytes_with_any_number_of_workers_and_shards(inputs, run, tmp_path, kind):
    one = tmp_path / "one"
    assert run("run", inputs[kind], "--out", one, "--max-bad", 0.2)[0] == 0
    several = tmp_path / "several"
    for number in (2, 0, 1):
        status, said = run(
            "run", inputs[kind], "--out", several, "--shard", f"{number}/3", "--workers", number
        )
        assert status == 0
        assert "merge --out" in said
    assert "pairs" not in " ".join(toy.outputs(several))
    assert run("merge", "--out", several)[0] == 0
    assert toy.outputs(several) == toy.outputs(one)


def test_the_seed_and_the_pair_decide_what_is_written(inputs, run, tmp_path):
    texts = {}
    for seed, limit in product((0, 1), (5, 8)):
        out = tmp_path / f"{seed}-{limit}"
        run("run", inputs["list"], "--out", out, "--seed", seed, "--limit", limit)
        found = lines(out / "captions.jsonl")
        texts[seed, limit] = [line["caption"] for line in found if line["origin"] == "synthetic"]
    assert texts[0, 5][:4] == texts[0, 8][:4] != texts[1, 8][:4]
    assert len(texts[0, 5]) == 5


def test_the_networks_see_what_the_official_transform_makes(inputs):
    source = JsonPairs(inputs["list"], inputs["list"].parent)
    block = next(blocks(source.records(), 3))
    seen = []

    class Watching(toy.ToyCaptioner):
        def write(self, images, keys):
            seen.append(images)
            return super().write(images, keys)

    models = toy.toy_models("c", None, Settings(filtered=False), "cpu")
    object.__setattr__(models, "captioner", Watching())
    rows = judged(Decoder(source.root, (16,), 10**6)[block], models, Settings(filtered=False))
    assert all("synthetic" in row for row in rows)
    steps = [v2.Resize((16, 16), Mode.BICUBIC), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    official = v2.Compose([*steps, v2.Normalize(Watching.mean, Watching.std)])
    expected = [official(Image.open(r.image.path).convert("RGB")) for r in block.records]
    torch.testing.assert_close(seen[0], torch.stack(expected))


REFUSALS = {
    "settings.threshold was 0.5 and is 0.6": ["--threshold", 0.6],
    "settings.batch_size was 4 and is 5": ["--batch-size", 5],
    "models.filter.sha256 was 'f' and is 'g'": ["--filter", "g"],
}


@pytest.mark.parametrize("told", REFUSALS)
def test_another_work_is_not_gone_on_with(inputs, run, tmp_path, told):
    assert run("run", inputs["list"], "--out", tmp_path / "out", "--shard", "0/2")[0] == 0
    begin = ("run", inputs["list"], "--out", tmp_path / "out", "--shard", "0/2")
    status, said = run(*begin, *REFUSALS[told])
    assert (status, said.count("\n")) == (1, 1)
    assert told in said
    assert run(*begin)[0] == 0


def test_another_input_is_not_gone_on_with(run, tmp_path):
    path = toy.write_json(tmp_path / "in", 9)
    out = tmp_path / "out"
    assert run("run", path, "--out", out)[0] == 0
    path.write_text(path.read_text().replace("picture 3", "picture 4"))
    status, said = run("run", path, "--out", out)
    assert status == 1
    assert "input.sha256 was" in said
    folder = toy.write_folder(tmp_path / "folder", 9)
    out = tmp_path / "out2"
    assert run("run", folder, "--out", out, "--shard", "0/1")[0] == 0
    (out / "card.json").unlink()
    (folder / "a/00003.webp").write_bytes(toy.image(3, "WEBP")[:-1] + b"\1")
    status, said = run("run", folder, "--out", out)
    assert (status, "the input has changed" in said) == (1, True)
    (folder / "a/00003.txt").write_text("another one")
    status, said = run("run", folder, "--out", out)
    assert (status, "the input has changed" in said) == (1, True)


def test_shards_that_do_not_belong_together_are_not_joined(inputs, run, tmp_path):
    def shard(name: str, which: str, *options: Any) -> Path:
        assert (
            run("run", inputs["list"], "--out", tmp_path / name, "--shard", which, *options)[0] == 0
        )
        return tmp_path / name

    first, twice, third = shard("a", "0/2"), shard("b", "0/2"), shard("c", "0/3")
    other = shard("d", "1/2", "--seed", 5)
    for folders, told in {
        (first,): "1 of 2 shards are missing: 1",
        (first, twice): "is there twice",
        (first, third): "shards of 2 and of 3 overlap",
        (first, other): "settings.seed was 5 and is 0",
        (tmp_path / "nothing",): "no shard in",
    }.items():
        status, said = run("merge", *folders, "--out", tmp_path / "joined")
        assert status == 1
        assert told in said
    status, said = run("run", inputs["list"], "--out", first)
    assert (status, "this would be one of 1" in said) == (1, True)
    second = shard("e", "1/2")
    journal = next((second / "work").glob("*.journal"))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-3])
    status, said = run("merge", first, second, "--out", tmp_path / "joined")
    assert (status, "shard 1/2 has not ended" in said) == (1, True)
    journal.write_bytes(whole)
    assert run("merge", first, second, "--out", tmp_path / "joined")[0] == 0
    assert (tmp_path / "joined/pairs.json").exists()


@pytest.mark.parametrize(
    ("given", "tasks", "expected"),
    [
        ("2/3", {}, (2, 3)),
        (None, {}, (0, 1)),
        (None, {"ID": 5, "COUNT": 8, "MIN": 0, "MAX": 7}, (5, 8)),
        (None, {"ID": 5, "COUNT": 3, "MIN": 1, "MAX": 5, "STEP": 2}, (2, 3)),
        ("3/3", {}, "i from 0 to n - 1"),
        (None, {"ID": 3, "COUNT": 2, "MIN": 0, "MAX": 3}, "only some tasks"),
        (None, {"ID": 3}, "give --shard"),
    ],
)
def test_a_shard_is_given_or_an_array_task(given, tasks, expected):
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in tasks.items()}
    if isinstance(expected, tuple):
        assert shard_of(given, environment) == expected
    else:
        with pytest.raises(WorkError, match=expected):
            shard_of(given, environment)


def test_a_finished_work_is_left_alone(inputs, run, tmp_path):
    run("run", inputs["shards"], "--out", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    status, said = run("run", inputs["shards"], "--out", tmp_path)
    assert (status, "0 of them in this run" in said) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}


def test_usage_and_folders_that_are_refused(inputs, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    for words, told in {
        ("--out", tmp_path / "mine"): "holds other things",
        ("--out", inputs["folder"] / "a"): "lies in the input",
        ("--out", tmp_path / "o", "--no-web", "--no-synthetic"): "leave no text",
        ("--out", tmp_path / "o", "--caption-only", "--no-synthetic"): "nothing to do",
        ("--out", tmp_path / "o", "--min-length", 30): "above --max-length",
    }.items():
        status, said = run("run", inputs["folder"], *words)
        assert (status, said.count("\n")) == (1, 1)
        assert told in said
    status, said = run("run", tmp_path / "gone.json", "--out", tmp_path / "o")
    assert (status, "no such file" in said) == (1, True)
    with pytest.raises(SystemExit):
        run("run", inputs["list"], "--out", tmp_path / "o", "--threshold", 2)


def test_models_must_be_given_and_there(tmp_path):
    with pytest.raises(WorkError, match="--captioner and --filter not given"):
        load_models(None, None, Settings(), "cpu")
    with pytest.raises(WorkError, match="--filter not given"):
        load_models("here", None, Settings(synthetic=False), "cpu")
    with pytest.raises(WorkError, match="No such file"):
        load_models(str(tmp_path / "gone"), None, Settings(filtered=False), "cpu")


@pytest.mark.parametrize("scores", [[0.2, float("nan")], [0.2, 1.5], [0.2]])
def test_a_filter_that_gives_no_probabilities_is_refused(
    inputs, run, tmp_path, scores, monkeypatch
):
    monkeypatch.setattr(toy.ToyFilter, "score", lambda *_: torch.tensor(scores))
    status, said = run("run", inputs["list"], "--out", tmp_path, "--batch-size", 2, "--no-web")
    assert (status, said.count("\n")) == (1, 1)
    assert "the filter" in said


@given(st.lists(st.dictionaries(st.text(), st.integers(), max_size=2), max_size=5), st.data())
def test_a_journal_is_believed_up_to_any_cut_and_goes_on(tmp_path_factory, contents, data):
    path = tmp_path_factory.mktemp("journal") / "shard"
    journal, ends = Journal(path), [0]
    assert list(journal.replay()) == []
    for content in contents:
        journal.append(content)
        ends.append(path.stat().st_size)
    journal.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    torn = bytearray(whole[:cut])
    if data.draw(st.booleans()) and torn:
        place = data.draw(st.integers(0, len(torn) - 1))
        torn[place] ^= 1 << data.draw(st.integers(0, 7))
        cut = place
    path.write_bytes(torn)
    intact = sum(end <= cut for end in ends) - 1
    journal = Journal(path)
    assert list(journal.replay()) == contents[:intact]
    assert journal.cut == len(torn) - ends[intact]
    for content in contents[intact:]:
        journal.append(content)
    journal.close()
    assert path.read_bytes() == whole
    assert list(read(path)) == contents


def test_memory_does_not_grow_with_the_input(run, tmp_path):
    peaks = []
    for count in (500, 2_000):
        path = tmp_path / f"{count}.json"
        entries = ({"image": f"{n}.jpg", "caption": "a" * 100} for n in range(count))
        path.write_text(f"[{', '.join(map(json.dumps, entries))}]")
        tracemalloc.start()
        try:
            status, _ = run("run", path, "--out", tmp_path / f"out{count}", "--max-bad", 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert status == 0
    assert peaks[1] < peaks[0] + 200_000, peaks
    assert np.all(np.array(peaks) < 8e6), peaks
