"""tenfold-detect label on small scenes: outputs, settings, sources of proposals, shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule

from methods.pb_ovd.detect import cli
from methods.pb_ovd.detect.proposals import DetectorProposals
from methods.pb_ovd.detect.teacher import load_teacher
from shared.checkpoints.reading import CheckpointError
from shared.data.captioned.decoding import Picture
from shared.data.captioned.records import Record
from shared.data.errors import WorkError
from shared.data.readers.instances import read_instances
from tests.unit import albef_toy, simcal_toy
from tests.unit import detect_toy as toy

Run = Callable[..., tuple[int, str]]
PREPARED = {
    "eval_resizing": {"short": [48], "long": 96, "between": False},
    "preparation": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size_divisor": 16},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return toy.write_scenes(tmp_path_factory.mktemp("in") / "scenes", 10)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command: its exit status, and all that it printed."""
    monkeypatch.setattr(
        "shared.tools.command.git_state", lambda: {"git_commit": "abc", "git_dirty": False}
    )

    def command(*words: Any) -> tuple[int, str]:
        status = cli.main([str(word) for word in words])
        out, error = capsys.readouterr()
        return status, out + error

    return command


def labels(out: Path) -> dict[str, Any]:
    return json.loads((out / "labels.json").read_text())


def card(out: Path) -> dict[str, Any]:
    return json.loads((out / "card.json").read_text())


def with_captions(scenes: dict[str, Path], folder: Path, *entries: Any) -> dict[str, Path]:
    """The scenes with other entries, beside their images."""
    path = scenes["pairs"].parent / f"{folder.name}.json"
    path.write_text(json.dumps(list(entries)))
    return scenes | {"pairs": path}


def test_labels_are_annotations_of_proposals_that_our_readers_read(scenes, run, tmp_path):
    out = tmp_path / "out"
    status, said = run("label", *toy.options(scenes, out), "--licence", "CC-BY")
    assert status == 0, said
    found = read_instances(out / "labels.json", scenes["pairs"].parent)
    assert sorted(found.class_names) == sorted([*toy.NAMES, "fruit"])
    proposed = read_instances(scenes["proposals"])
    for number in range(len(found)):
        boxes = proposed.boxes[proposed.of_image(number)].tolist()
        assert all(box in boxes for box in found.boxes[found.of_image(number)].tolist())
    # "banana" is a word of two objects, which then look at the same place.
    by_name = {c["name"]: c["id"] for c in labels(out)["categories"]}
    of_class: dict[int, dict[int, Any]] = {number: {} for number in by_name.values()}
    for entry in labels(out)["annotations"]:
        of_class[entry["category_id"]][entry["image_id"]] = entry["bbox"]
    assert of_class[by_name["banana"]] == of_class[by_name["fruit"]] != {}
    facts = card(out)
    assert (facts["entries"], facts["images"], facts["licence"]) == (10, 10, "CC-BY")
    assert facts["mentions"] == facts["boxes"] == facts["annotations"] == len(found.labels)
    assert facts["unmatched_words"] == ["ᚠᚢ"]
    assert "left out, since the teacher does not know them: ᚠᚢ" in said
    assert "--licence CC-BY" in facts["command"]
    assert "--workers" not in facts["command"]


def test_shards_join_to_the_bytes_of_one_process_and_a_finished_work_is_left(scenes, run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("label", *toy.options(scenes, whole))[0] == 0
    for shard in ("1/2", "0/2"):
        assert run("label", *toy.options(scenes, parts), "--shard", shard)[0] == 0
    status, said = run("merge", "--out", parts)
    assert status == 0, said
    assert toy.outputs(parts) == toy.outputs(whole)
    before = (whole / "labels.json").stat().st_mtime_ns
    status, said = run("label", *toy.options(scenes, whole))
    assert (status, "0 of them in this run" in said) == (0, True)
    assert (whole / "labels.json").stat().st_mtime_ns == before
    status, said = run("label", *toy.options(scenes, whole), "--threshold", 0.7)
    assert (status, "settings.threshold was 0.5 and is 0.7" in said) == (1, True)


def test_by_similarity_each_object_is_asked_for_alone():
    teacher = load_teacher(toy.TEACHER, None, [], "similarity", None, "cpu")
    images = torch.rand(
        2, 3, teacher.size, teacher.size, generator=torch.Generator().manual_seed(0)
    )
    banana, plane, both = teacher.tokens(["banana", "airplane", "airplane and banana"])
    assert len(both) == 4
    alone, named = teacher.maps(images, [banana, both], [1, 1], [[(1, 2)], [(3, 4), (1, 2)]])
    assert (len(alone), len(named)) == (1, 2)
    torch.testing.assert_close(named[:1], alone)
    assert not torch.allclose(named[0], named[1])
    (elsewhere,) = teacher.maps(images, [plane], [0], [[(1, 2)]])
    assert not torch.allclose(elsewhere[0], named[1])


def test_entries_of_one_image_are_one_image_and_entries_without_a_name_none(scenes, run, tmp_path):
    first, second = "images/000.png", "images/001.png"
    files = with_captions(
        scenes, tmp_path,
        {"image": second, "caption": "a nice thing"},  # no word of the vocabulary
        {"image": first, "caption": "an airplane"},
        {"image": second, "caption": "banana"},
        {"image": first, "caption": "a BANANA, on a bicycle!"},
    )  # fmt: skip
    assert run("label", *toy.options(files, tmp_path / "out"))[0] == 0
    found = labels(tmp_path / "out")
    assert [image["file_name"] for image in found["images"]] == [first, second]
    names = {c["id"]: c["name"] for c in found["categories"]}
    of_image = [[names[a["category_id"]] for a in found["annotations"] if a["image_id"] == i]
                for i in (0, 1)]  # fmt: skip
    assert of_image == [["airplane", "banana", "bicycle", "fruit"], ["banana", "fruit"]]
    assert card(tmp_path / "out")["entries_without_mention"] == 1


def test_what_cannot_be_used_is_named(scenes, run, tmp_path):
    entries = json.loads(scenes["pairs"].read_text())
    boxes = json.loads(scenes["proposals"].read_text())
    boxes["images"][1]["height"] += 1
    boxes["images"][2]["file_name"] = "elsewhere.png"
    changed = tmp_path / "boxes.json"
    changed.write_text(json.dumps(boxes))
    missing = {"image": "images/no.png", "caption": "banana"}
    long = {"image": "images/003.png", "caption": "supercalifragilistic " * 30}
    files = with_captions(scenes, tmp_path, *entries[:3], missing, long)
    files = files | {"proposals": changed}
    status, said = run("label", *toy.options(files, tmp_path / "out"), "--max-bad", 1)
    assert status == 0, said
    lines = (tmp_path / "out/unusable.jsonl").read_text().splitlines()
    faults = {told["image"]: told["fault"] for told in map(json.loads, lines)}
    assert faults["images/001.png"] == "another image: its proposals are of one of 96 x 65 pixels"
    assert faults["images/002.png"] == "no proposals: boxes.json does not name it"
    assert faults["images/no.png"] == "no file"
    assert faults["images/003.png"].startswith("too long: a caption of")
    assert labels(tmp_path / "out")["images"][0]["file_name"] == "images/000.png"
    status, said = run("label", *toy.options(files, tmp_path / "strict"))
    assert (status, "4 of 5 entries are unusable" in said) == (1, True)


def test_of_several_captions_one_counts_by_lot_or_all_do(scenes, run, tmp_path):
    image = {"image": "images/000.png", "caption": ["an airplane", "a banana", "a bicycle"]}
    files = with_captions(scenes, tmp_path, image)
    for name, words, classes in (("one", [], 1), ("all", ["--every-caption"], 4)):
        assert run("label", *toy.options(files, tmp_path / name), *words)[0] == 0
        found = {c["name"] for c in labels(tmp_path / name)["categories"]} - {"fruit"}
        assert len(found) == min(3, classes)
    again = [labels(tmp_path / "one")]
    for seed in range(1, 9):
        run("label", *toy.options(files, tmp_path / f"{seed}"), "--seed", seed)
        again.append(labels(tmp_path / f"{seed}"))
    assert len({json.dumps(found["categories"]) for found in again}) > 1


def test_objects_without_a_box_are_dropped_but_in_the_official_way(scenes, run, tmp_path):
    boxes = json.loads(scenes["proposals"].read_text())
    boxes["annotations"] = []
    empty = tmp_path / "none.json"
    empty.write_text(json.dumps(boxes))
    files = scenes | {"proposals": empty}
    assert run("label", *toy.options(files, tmp_path / "out"))[0] == 0
    assert labels(tmp_path / "out") == {"images": [], "annotations": [], "categories": []}
    assert run("label", *toy.options(files, tmp_path / "official"), "--official")[0] == 0
    found = labels(tmp_path / "official")["annotations"]
    assert found
    assert all((a["bbox"], a["pseudo_score"]) == ([0, 0, 0, 0], -1) for a in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layer", 3], "only [CLS] has a gradient"),
        (["--layer", 0], "--layer: layer 0 has no cross-attention"),
        (["--layer", 2, "--objective", "similarity"], "--layer: no block 2"),
        (["--teacher", "zoo:vit-emoji"], "so it is not one of ours"),
        (["--teacher", "zoo:nothing"], "nothing"),
        (["--proposals", "nowhere.json"], "nowhere.json"),
        (["--vocabulary", "nowhere.json"], "nowhere.json"),
        (["--device", "abacus"], "device=abacus cannot be used here"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(scenes, run, tmp_path, words, said):
    given = toy.options(scenes, tmp_path / "out")
    status, told = run("label", *given, *words)
    assert (status, told.count("\n")) == (1, 1), told
    assert told.startswith("tenfold-detect: ")
    assert said in told


def test_archives_are_refused(run, tmp_path):
    from tests.unit.capfilt_toy import write_shards

    files = {name: write_shards(tmp_path / "tars", [2]) for name in
             ("pairs", "vocabulary", "proposals")}  # fmt: skip
    status, said = run("label", *toy.options(files, tmp_path / "out"))
    assert (status, "tar shards have none: unpack them" in said) == (1, True)


def checkpoint(path: Path, module: LightningModule, **data: Any) -> str:
    kind = type(module)
    content = {
        "_target_": f"{kind.__module__}.{kind.__qualname__}",
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "datamodule_hyper_parameters": data,
    }
    torch.save(content, path)
    return str(path)


def test_proposals_of_a_detector_are_those_of_its_first_stage_in_the_images_own_pixels(tmp_path):
    module = simcal_toy.joint().eval()
    path = checkpoint(tmp_path / "joint.ckpt", module, **PREPARED)
    proposer = DetectorProposals(path, 7, "cpu")
    generator = np.random.default_rng(0)
    sizes = [(30, 60), (48, 48)]
    pixels = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    pictures = [Picture("", {}, s, p) for s, p in zip(sizes, pixels, strict=True)]
    wide, square = proposer.propose([Record("a"), Record("b")], pictures)
    assert wide.shape[1:] == square.shape[1:] == (4,)
    assert 0 < len(wide) <= 7
    assert (wide[:, 2:] <= torch.tensor([60, 30])).all()
    assert (wide[:, 2:] > wide[:, :2]).all()
    alone = proposer.propose([Record("b")], pictures[1:])[0]  # of its own size: not resized
    images = torch.from_numpy((pixels[1] / 255.0 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        outputs = module.detector.rpn(module.detector.maps(images))
        found = module.detector.propose(outputs, torch.tensor([[48, 48]]), "test")
    expected = module.detector.geometry.ends(found.boxes)[0][found.valid[0]][:7]
    torch.testing.assert_close(alone, expected.double())


def test_checkpoints_that_propose_nothing_are_refused(tmp_path):
    other = checkpoint(tmp_path / "albef.ckpt", albef_toy.retrieval(), **PREPARED)
    with pytest.raises(WorkError, match="holds Retrieval, which is no detector"):
        DetectorProposals(other, 7, "cpu")
    bare = checkpoint(tmp_path / "bare.ckpt", simcal_toy.joint())
    with pytest.raises(WorkError, match="does not say how images are prepared"):
        DetectorProposals(bare, 7, "cpu")
    huge = {**PREPARED, "eval_resizing": {"short": [10**9], "long": 10**9, "between": False}}
    large = checkpoint(tmp_path / "large.ckpt", simcal_toy.joint(), **huge)
    with pytest.raises(WorkError, match="not from 1 to 4096 pixels"):
        DetectorProposals(large, 7, "cpu")
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    with pytest.raises(CheckpointError):
        DetectorProposals(str(tmp_path / "noise.ckpt"), 7, "cpu")
