"""The speed benchmark's protocol on fake sides, without the peer."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from benchmarks.speed import __main__ as speed
from benchmarks.speed import (
    albef,
    alpro,
    alpro_peer,
    blip,
    pb_ovd,
    pb_ovd_peer,
    pcl,
    peer_environment,
    serving,
    simcal,
    simcal_peer,
)
from benchmarks.speed.comatch import make_data
from benchmarks.speed.protocol import (
    Comparison,
    SpeedError,
    Worker,
    alternate,
    check_same_values,
    check_same_work,
    compare,
    quartiles,
    ratio_lines,
    table,
    write,
)
from shared.data.readers.small_images import cifar10
from shared.nn.timesformer import TimeSformer
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = [("ours", "a"), ("peer", "a"), ("ours", "b")]  # of the comparisons, each once
COMPARISONS = [Comparison("float32", "a", "a"), Comparison("bf16", "b", "a")]


class FakeSide:
    """Replies with given seconds per variant and notes the order of calls in a shared diary."""

    def __init__(self, name, seconds, diary, loss=1.0):
        self.name, self.seconds, self.diary, self.loss = name, seconds, diary, loss

    def ask(self, command, variant, steps):
        self.diary.append((self.name, variant, steps))
        self.seconds[variant] *= 1.1  # the machine grows slower, for both
        return [[self.seconds[variant]] * steps, [self.loss] * steps]


def sides(diary, **keywords):
    return {
        "ours": FakeSide("ours", {"a": 1.0, "b": 0.5}, diary, **keywords),
        "peer": FakeSide("peer", {"a": 2.0}, diary),
    }


def test_sides_take_turns_and_the_order_turns_round():
    diary = []
    taken = alternate(sides(diary), COMPARISONS, blocks=3, steps=4, warm_up=2)
    forward = [(*v, 4) for v in VARIANTS]
    assert diary == [(*v, 2) for v in VARIANTS] + forward + forward[::-1] + forward
    assert {key: [len(block) for block in blocks] for key, blocks in taken.items()} == {
        variant: [4, 4, 4] for variant in VARIANTS
    }


def test_ratio_is_paired_within_blocks():
    rows = compare(COMPARISONS, alternate(sides([]), COMPARISONS, blocks=5, steps=2, warm_up=1))
    assert [row.ratio for row in rows] == pytest.approx([0.5, 0.25])
    # The drift of the machine shows in the times and not in the ratio.
    assert rows[0].iqr == pytest.approx((0.5, 0.5))
    assert rows[0].ours_iqr[1] / rows[0].ours_iqr[0] > 1.1
    assert rows[0].peer_ms == pytest.approx(2 * rows[0].ours_ms)


def test_another_variant_of_ours_may_stand_in_the_peers_place():
    diary = []
    rows = [Comparison("float32", "b", "ours a")]
    (row,) = compare(rows, alternate(sides(diary), rows, blocks=2, steps=1, warm_up=1))
    assert {side for side, *_ in diary} == {"ours"}
    assert row.ratio == pytest.approx(0.5)


def test_one_disturbed_step_changes_neither_median_nor_ratio():
    taken = {("ours", "a"): [[1.0, 1.0, 9.0]] * 3, ("peer", "a"): [[2.0] * 3] * 3}
    (row,) = compare(COMPARISONS[:1], taken)
    assert (row.ours_ms, row.peer_ms, row.ratio) == (1000.0, 2000.0, 0.5)
    with pytest.raises(ValueError, match="zip"):  # unequal blocks
        compare(COMPARISONS[:1], {**taken, ("peer", "a"): [[1.0]]})


def test_loss_that_is_not_finite_stops_the_comparison():
    with pytest.raises(SpeedError, match=r"ours \(a\) is not finite"):
        alternate(sides([], loss=float("nan")), COMPARISONS, blocks=1, steps=1, warm_up=1)


def test_quartiles():
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([5.0, 1.0, 4.0, 2.0, 9.0]) == (2.0, 5.0)


WORK = {"parameters": 1000, "images_per_step": 352, "threads": 2, "torch": "2"}


@pytest.mark.parametrize(
    "other", [{"images_per_step": 288}, {"threads": 1}, {"torch": "1"}, {"parameters": 900}]
)
def test_other_work_is_refused(other):
    check_same_work(WORK, {**WORK, "parameters": 1001})
    with pytest.raises(SpeedError, match="not the same"):
        check_same_work(WORK, {**WORK, **other})


def test_other_values_are_refused():
    tolerances = {"losses": 1e-3, "ranks": 0.0}
    ours = {"losses": [1.0, 2.0], "ranks": [3, 1], "more": [5.0]}
    check_same_values(ours, {"losses": [1.0005, 2.0], "ranks": [3, 1]}, tolerances)
    for peer, message in (
        ({"losses": [1.0, 2.1], "ranks": [3, 1]}, r"losses differ .* 1 of 2 .*number 1 is 2 here"),
        ({"losses": [1.0, float("nan")], "ranks": [3, 1]}, "number 1 is 2 here, nan there"),
        ({"losses": [1.0, 2.0], "ranks": [1, 3]}, "ranks differ by more than 0 in 2 of 2 values"),
        ({"losses": [1.0], "ranks": [3, 1]}, "losses: 2 values here, 1 there"),
        ({"losses": [1.0, 2.0]}, "ranks: 2 values here, 0 there"),
    ):
        with pytest.raises(SpeedError, match=message):
            check_same_values(ours, peer, tolerances)
    with pytest.raises(SpeedError, match="losses: 0 values here, 0 there"):
        check_same_values({}, {}, tolerances)


def test_lines_table_and_file(tmp_path):
    rows = compare(COMPARISONS, alternate(sides([]), COMPARISONS, blocks=3, steps=2, warm_up=1))
    *_, spread, last = ratio_lines(rows[0]).splitlines()
    assert last == "ratio: 0.500 (ours/peer, lower is better)"
    assert "interquartile range" in spread
    assert "0.500 to 0.500" in spread
    assert [line.split()[0] for line in table("step", rows).splitlines()[1:]] == ["float32", "bf16"]

    write(tmp_path / "speed" / "m.json", rows, {"machine": "x", "threads": 2})
    content = json.loads((tmp_path / "speed" / "m.json").read_text())
    assert content["ratio"] == pytest.approx(0.5)
    assert content["iqr"] == pytest.approx([0.5, 0.5])
    assert (content["machine"], content["threads"]) == ("x", 2)
    assert {"name", "ours_ms", "peer_ms", "ratio", "iqr"} <= set(content["rows"][1])


WORKLOAD = """
import torch
from benchmarks.speed.serving import Workload
class Toy(Workload):
    rows = 2
    def __init__(self, settings): super().__init__(settings); print("noise of a library")
    def parameters(self): return [torch.zeros(3), torch.zeros(4)]
    def values(self): return {"losses": [0.5]}
    def step(self, precision, what):
        print("more noise")
        if what == "broken": raise ValueError("no such thing")
        return lambda: 1.5
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(WORKLOAD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = {"threads": 1, "seed": 0, "queries": {"10": 4}}
    worker = Worker(Path(sys.executable), "toy:Toy", settings, tmp_path, tmp_path / "logs/toy.log")
    yield worker
    worker.close()


def test_worker_answers_and_its_prints_go_to_the_log_until_it_fails(worker):
    expected = {"parameters": 7, "images_per_step": 2, "threads": 1, "torch": torch.__version__}
    assert worker.ask("describe") == expected
    assert worker.ask("values") == {"losses": [0.5]}
    seconds, losses = worker.ask("run", variant="float32", steps=3)
    assert (len(seconds), losses) == (3, [1.5] * 3)
    assert min(seconds) >= 0
    with pytest.raises(SpeedError, match=r"toy:Toy failed .*toy\.log.*\nValueError: no such thing"):
        worker.ask("run", variant="float32 broken", steps=1)
    with pytest.raises(SpeedError, match="the process ended"):
        worker.ask("run", variant="float32", steps=1)
    assert worker.log.read_text().split("\n")[0] == "noise of a library"
    assert "Traceback" in worker.log.read_text()


def test_time_is_of_one_of_those_that_are_answered_together(monkeypatch):
    monkeypatch.setattr(serving, "timed", lambda _, steps: ([6.0] * steps, [1.0] * steps))
    monkeypatch.setattr(serving.Workload, "step", lambda *_: None)
    side = serving.Workload({"threads": 1, "seed": 0, "queries": {"10": 4}})
    assert side.run("float32 10", 2)[0] == [1.5, 1.5]
    assert side.run("float32 encoding", 1)[0] == [6.0]


def package(requirement, *dependencies):
    return {"requirement": requirement, "dependencies": dependencies}


@pytest.fixture
def installed(monkeypatch):
    """The commands by which a peer is installed, all of which succeed."""
    commands = []
    pip = SimpleNamespace(run=lambda command, **_: commands.append(command))
    pip.CalledProcessError = subprocess.CalledProcessError
    made = SimpleNamespace(create=lambda path, **_: path.mkdir(exist_ok=True))
    monkeypatch.setattr(peer_environment, "venv", made)
    monkeypatch.setattr(peer_environment, "subprocess", pip)
    return commands


def test_absent_peer_says_what_to_do(tmp_path, monkeypatch, installed):
    failed = subprocess.CalledProcessError(1, "pip", stderr="ERROR: No matching distribution")
    monkeypatch.setattr(peer_environment.subprocess, "run", Mock(side_effect=failed))
    with pytest.raises(SpeedError) as caught:
        peer_environment.ensure(tmp_path / ".venv-peer", package("peer==1", "numpy"))
    for said in ("peer==1 is absent", "No matching distribution", "python -m venv .venv-peer",
                 ".venv-peer/bin/pip install --no-deps peer==1"):  # fmt: skip
        assert said in str(caught.value)


def test_peers_share_one_environment_and_each_is_installed_once(tmp_path, installed):
    peers = [package("peer==1", "numpy"), package("other==2", "scipy")]
    for peer in (*peers, *peers):
        python = peer_environment.ensure(tmp_path / "v", peer)
    assert python == tmp_path / "v" / "bin" / "python"
    assert f"torch=={version('torch')}" in installed[0]
    assert [command[-1] for command in installed] == ["numpy", "peer==1", "scipy", "other==2"]
    peer_environment.ensure(tmp_path / "v", package("peer==1.1", "numpy"))
    assert installed[-1][-1] == "peer==1.1"


@pytest.fixture
def comparison(monkeypatch, tmp_path):
    """A comparison of fake sides: `spec`, the settings of the sides, their diary, and a start."""
    seen, diary, distance = [], [], [0.0]

    class FakeWorker(FakeSide):
        def __init__(self, python, name, settings, root, log):
            seconds = {"float32": 1.0, "float32 loading": 2.0, "float32 reranking": 4.0}
            super().__init__(name.partition(":")[2], seconds, diary)
            seen.append(settings)

        def ask(self, command, **given):
            loss = 1.0 if self.name == "Ours" else 1.0 + distance[0]
            known = {"describe": WORK, "values": {"losses": [loss]}, "figures": {"av_clips": 3.0}}
            return known.get(command) or super().ask(command, **given)

        def close(self):
            pass

    same = ["float32"] * 3
    spec = {"peer": {"requirement": "peer==1", "dependencies": []}, "warm_up_steps": 1}
    spec |= {"settings": {"seed": 0, "judge": None}, "header": "a step", "tables": {"step": [same]}}
    monkeypatch.setattr(speed, "Worker", FakeWorker)
    monkeypatch.setattr(speed, "load", lambda _: spec)
    monkeypatch.setattr(speed, "import_module", lambda _: SimpleNamespace())
    monkeypatch.setattr(speed.peer_environment, "ensure", lambda *_: Path("python"))

    def start(*more):
        few = ["toy", "--blocks", "2", "--steps", "3", "--output", str(tmp_path)]
        status = speed.main([*few, *more])
        path = tmp_path / "speed" / "toy.json"
        return status, json.loads(path.read_text())["rows"] if path.exists() else None

    return SimpleNamespace(spec=spec, seen=seen, diary=diary, distance=distance, start=start)


def test_each_table_has_its_rows_and_its_steps(comparison, capsys):
    tables = comparison.spec["tables"]
    tables["with_loading"] = [["float32", "float32 loading", "float32 loading"]]
    tables["reranking"] = [["float32", "float32 reranking", "float32 reranking"]]
    status, rows = comparison.start()
    output = capsys.readouterr().out
    assert status == 0
    assert output.splitlines()[-1].startswith("ratio: 1.000")
    assert "with loading and augmentation" in output
    assert "re-ranking a gallery" in output
    names = ["float32", "float32, with loading", "float32, re-ranking"]
    assert [row["name"] for row in rows] == names
    # Warm-up and blocks, on both sides.
    for variant, expected in (("float32 reranking", [1] * 6), ("float32", [1] * 2 + [3] * 4)):
        assert [steps for _, of, steps in comparison.diary if of == variant] == expected


def test_settings_can_be_changed(comparison, capsys):
    assert comparison.start("--set", "judge=a/last.ckpt", "seed=3")[0] == 0
    assert [(s["judge"], s["seed"]) for s in comparison.seen] == [("a/last.ckpt", 3)] * 2
    for wrong in ("judge", "other=1"):
        assert comparison.start("--set", wrong)[0] == 1
        assert "NAME is one of seed, judge" in capsys.readouterr().err


@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_sides_that_must_compute_the_same_are_not_timed_if_they_do_not(
    comparison, capsys, distance
):
    comparison.spec["equal"], comparison.distance[0] = {"losses": 0.1}, distance
    assert comparison.start()[0] == (distance > 0)
    printed = capsys.readouterr()
    assert ("losses differ by more than 0.1" in printed.err) is (distance > 0)
    assert ("ratio" in printed.out) is (distance == 0)
    assert bool(comparison.diary) is (distance == 0)


def test_figures_are_told_also_of_what_is_not_installed(comparison, capsys):
    comparison.spec["figures"] = dict.fromkeys(("av_clips", "other_clips"), "clips/s")
    assert comparison.start()[0] == 0
    assert "av clips: 3 clips/s\nother clips: not installed\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "method", ["comatch", "pcl", "albef", "blip", "cascode", "simcal", "pb_ovd", "alpro"]
)
def test_what_is_compared_is_complete(method, monkeypatch):
    spec = speed.load(method)
    monkeypatch.setattr(speed, "has_bf16_units", lambda _: False)
    assert spec["peer"]["requirement"].split("==")[0] in spec["header"]
    assert spec["tables"].keys() <= speed.TABLES.keys()
    for rows in spec["tables"].values():
        assert speed.runnable(rows)[0].name.endswith("float32")
        assert not any("bf16" in c.ours for c in speed.runnable(rows))
    for name in (method, f"{method}_peer"):
        assert (ROOT / "benchmarks" / "speed" / f"{name}.py").is_file()


def test_our_moco_steps_by_hand_and_in_lightnings_loop():
    # With the peer's head and queue, on smaller batches.
    settings = speed.load("pcl")["settings"] | {"threads": 1, "batch_size": 2, "queue_size": 8}
    ours = pcl.Ours(settings)
    assert ours.describe()["images_per_step"] == 4
    assert ours.describe()["parameters"] == 11_168_832 + 513 * 512 + 513 * 128
    for variant in ("float32", "float32 trainer"):
        (seconds,), (loss,) = ours.run(variant, 1)
        assert seconds > 0
        assert 0 < loss < 30
    with pytest.raises(ValueError, match="no batches called 'loading'"):
        ours.run("float32 loading", 1)


def test_our_albef_steps_ranks_and_gives_its_values(tmp_path):
    spec = speed.load("albef")
    ranking = {"width": 16, "heads": 2, "intermediate": 32, "layers": 2, "image_tokens": 5}
    small = {
        "vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "text": {"vocab_size": 2000, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32},
        "full_size": ranking,
        "miniature": ranking | {"images": 12, "texts": 20, "k_test": 5},
    }
    settings = spec["settings"] | {part: spec["settings"][part] | small[part] for part in small}
    settings |= {"batch_size": 4, "queue_size": 8, "threads": 1, "data": str(tmp_path)}
    albef.make_data(tmp_path, settings)
    ours = albef.Ours(settings)
    assert ours.describe()["images_per_step"] == 4
    values = ours.values()
    assert values.keys() == spec["equal"].keys()
    assert len(values["losses"]) == 3 * albef.STEPS
    assert len(values["ranks"]) == len(values["matching scores"]) == (8 + 40) * 6 + (12 + 20) * 5
    # The draws and weights are given: the values are those of any other process.
    assert albef.Ours(settings).values() == values
    assert all(0 < loss < 40 for loss in ours.run("float32", 2)[1])
    for gallery in albef.GALLERIES:
        seconds, scores = ours.run(f"float32 {gallery}", 1)
        half = ours.run(f"bf16 {gallery}", 1)[1]
        assert len(seconds) == 1
        assert half == pytest.approx(scores, abs=0.1)
    weights = torch.load(tmp_path / "pretraining_weights.pt")
    assert not any(key.split(".")[0].endswith("_m") for key in weights)


def test_our_blip_steps_writes_ranks_and_gives_its_values(tmp_path):
    spec = speed.load("blip")
    ranking = {"width": 16, "heads": 2, "intermediate": 32, "layers": 2, "image_tokens": 5}
    small = {
        "vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "text": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32},
        "captions": {"images": 3, "length": 8},
        "full_size": ranking,
        "miniature": ranking | {"images": 12, "texts": 20, "k_test": 5},
    }
    settings = spec["settings"] | {part: spec["settings"][part] | small[part] for part in small}
    settings |= {"batch_size": 4, "queue_size": 8, "threads": 1, "data": str(tmp_path)}
    blip.make_data(tmp_path, settings)
    ours = blip.Ours(settings)
    assert ours.describe()["images_per_step"] == 4
    values = ours.values()
    assert values.keys() == spec["equal"].keys()
    assert len(values["losses"]) == 3 * blip.STEPS
    assert len(values["ranks"]) == len(values["matching scores"]) == (8 + 40) * 6 + (12 + 20) * 5
    captions = torch.tensor(values["captions"]).view(3, 8)
    assert captions[:, :4].tolist() == [[30522, 1037, 3861, 1997]] * 3
    assert not captions.eq(102).any()
    # The draws and weights are given: the values are those of any other process.
    assert blip.Ours(settings).values() == values
    assert all(0 < loss < 40 for loss in ours.run("float32", 2)[1])
    with_cache, without = (ours.run(f"float32 {what}", 1)[1] for what in blip.WRITING)
    assert with_cache == without == [float(captions.sum())]
    for gallery in ours.galleries:
        scores, half = (ours.run(f"{form} {gallery}", 1)[1] for form in ("float32", "bf16"))
        assert half == pytest.approx(scores, abs=0.1)


def test_our_alpro_steps_loads_and_gives_its_values(tmp_path):
    spec = speed.load("alpro")
    small = {
        "vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "text": {"vocab_size": 2000, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32},
        "videos": {"train": 4, "image_size": 32},
    }
    settings = spec["settings"] | {part: spec["settings"][part] | small[part] for part in small}
    settings["text"] |= {"num_layers": 2, "fusion_layer": 1}
    settings |= {"batch_size": 4, "entities": 50, "threads": 1, "data": str(tmp_path)}
    alpro.make_data(tmp_path, settings)
    ours = alpro.Ours(settings)
    assert ours.describe()["images_per_step"] == 4
    values = ours.values()
    assert values.keys() == spec["equal"].keys()
    assert len(values["losses"]) == alpro.STEPS * (4 + 2)
    assert min(values["losses"]) > 0
    # Something reaches every weight but those of keys' biases, which softmax cancels.
    assert sum(norm > -5 for norm in values["gradients"]) > 0.9 * len(values["gradients"])
    for task in alpro_peer.TASKS:
        assert all(0 < loss < 40 for loss in ours.run(f"float32 {task}", 1)[1])
    figures = ours.figures()
    assert {"pyav_clips", "waiting_for_clips"} <= figures.keys() <= spec["figures"].keys()
    assert 0 < figures["waiting_for_clips"] < 100


def test_the_peers_divided_attention_is_ours(tmp_path):
    sizes = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "frames": 3}
    sizes |= {"mlp_ratio": 2.0, "drop_path": 0.0}
    ours, peer = TimeSformer(**sizes), alpro_peer.TimeSformer(sizes)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    peer.load_state_dict(ours.state_dict())
    clips = torch.randn(2, 3, 3, 16, 16)
    torch.testing.assert_close(peer(clips), ours(clips))


def test_both_simcals_compute_the_same_and_ours_reads(tmp_path):
    spec = speed.load("simcal")
    small = {
        "classes": 9,
        "threshold": 20,
        "batch_size": 3,
        "detected": 2,
        "side": 48,
        "objects": 2,
    }
    few = "experiment=simcal/smoke_calibration"
    backbone = "backbone@method.detector.backbone"
    pyramid = [
        "method.detector.anchors.sizes=[8,16,32,64,128]",
        "method.detector.box_head.hidden=8",
    ]
    config = [few, f"{backbone}=resnet50_fpn", "~method.detector.backbone.channels"]
    config += ["method.detector.backbone.depth=18", *pyramid]
    settings = spec["settings"] | {
        "full_size": small | {"config": config},
        "miniature": small | {"config": [few]},
        "reading": {"images": 2, "size": [32, 48], "short": 40, "batch_size": 1, "objects": 3},
        "threads": 1,
        "data": str(tmp_path),
    }
    simcal.make_data(tmp_path, settings)
    ours, peer = simcal.Ours(settings), simcal_peer.Peer(settings)
    check_same_work(ours.describe(), peer.describe())
    values = ours.values()
    assert values.keys() == spec["equal"].keys()
    assert len(values["losses"]) == 4
    assert len(values["labels"]) > 10
    check_same_values(values, peer.values(), spec["equal"])
    for what in ("float32 miniature", "float32 miniature_detection"):
        assert all(loss > 0 for side in (ours, peer) for loss in side.run(what, 2)[1])
    figures = ours.figures()
    assert figures.keys() == spec["figures"].keys()
    assert min(figures.values()) > 0


@pytest.mark.parametrize("method", ["comatsch", "../comatch"])
def test_unknown_method(method, capsys):
    assert speed.main([method]) == 1
    assert f"no speed comparison named '{method}'" in capsys.readouterr().err


def test_generated_images_read_as_cifar10(tmp_path):
    make_data(tmp_path, {}, images_per_file=20)
    images = cifar10(tmp_path, "train")
    assert len(images.labels) == 100
    assert sorted(set(images.labels.tolist())) == list(range(10))


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NO_HUGE_PAGES = not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_on_huge_pages_and_takes_none():
    """In a process of its own, because the setting stays: page faults of three blocks above
    glibc's 32 MiB threshold, the memory that asking takes, the flags of a block's mapping."""
    code = r"""
import ctypes
import re
import resource
from importlib.metadata import version
from pathlib import Path
from shared.training.allocator import keep_freed_memory
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def written():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        libc.free(written())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
libc.free(written())
print(faults())
before = resident()
assert keep_freed_memory() and keep_freed_memory()
print(resident() - before)
libc.free(written())
print(faults())
address = written() + size // 2
inside = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
        inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
    elif inside and line.startswith("VmFlags"):
        print(*line.split()[1:])
"""
    default, taken, kept, flags = run([sys.executable, "-c", code], cwd=ROOT).stdout.splitlines()
    assert int(kept) < int(default) / 10
    assert int(taken) < 32 << 10  # KiB
    assert NO_HUGE_PAGES or "hg" in flags.split()


def test_both_ways_to_pseudo_boxes_choose_the_same_and_pictures_are_searched(tmp_path):
    spec = speed.load("pb_ovd")
    few = {"images": 3, "size": [60, 90], "proposals": 20, "detecting": {"pictures": 2}}
    settings = {**spec["settings"], **few, "threads": 1, "data": str(tmp_path)}
    pb_ovd.make_data(tmp_path, settings)
    ours, peer = pb_ovd.Ours(settings), pb_ovd_peer.Peer(settings)
    check_same_work(ours.describe(), peer.describe())
    check_same_values(ours.values(), peer.values(), spec["equal"])
    assert len(ours.values()["scores"]) == 3 * settings["objects"]
    assert all(ours.run(variant, 1) for _, variant, _ in spec["tables"]["labelling"])
    assert ours.figures()["pictures_searched"] > 0
    assert spec["figures"].keys() == ours.figures().keys()
