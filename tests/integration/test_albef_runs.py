"""ALBEF's tasks through the real entry point: two steps, validation and test on a synthetic set,
from scratch and from the weights that each task starts from."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shared import run as entry
from shared.checkpoints.reading import CheckpointError
from tests.conformance.conftest import compose_experiment
from tests.hostile.damages import every

RETRIEVAL = {f"{side}_r{k}" for side in ("txt", "img", "itc_txt", "itc_img") for k in (1, 5, 10)}
TASKS = {
    "retrieval": ({"loss_ita", "loss_itm"}, {"r_mean", "itc_r_mean", *RETRIEVAL}),
    "vqa": ({"loss_answer"}, {"vqa_accuracy", "evaluated"}),
    "nlvr": ({"loss_cls"}, {"accuracy", "accuracy_true", "evaluated"}),
    "text_assignment": ({"loss_ta"}, {"accuracy", "evaluated"}),
    "ve": ({"loss_cls"}, {"accuracy", "accuracy_neutral", "evaluated"}),
    "refcoco": ({"loss_ita", "loss_itm"}, {"testA_d", "testB_d"}),
}
EVALUATED = {"vqa": 16, "nlvr": 16, "ve": 16, "text_assignment": 32}
STEPS = 2


def run(experiment: str, output: Path, data_root: Path, *overrides: str) -> dict[str, Any]:
    common = [f"output_dir={output}", f"data_root={data_root}", "logger.wandb=null"]
    common += ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    return entry.run(compose_experiment(f"albef/smoke_{experiment}", *common, *overrides))


def checkpoint(output: Path) -> Path:
    return output / "checkpoints" / "last.ckpt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged(output: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (output / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["metric"], []).append(float(row["value"]))
    return found


def still(*overrides: str) -> list[str]:
    """Overrides that let nothing learn."""
    return ["method.lr=0", "method.min_lr=0", "method.warmup_lr=0", *overrides]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def pretrained(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a pre-training in the sizes of the tasks' smoke runs."""
    output = tmp_path_factory.mktemp("pretrain")
    sizes = ["method=albef_pretrain", "method.cls_id=2", "method.mask_id=4"]
    run("retrieval", output, data_root, *sizes)
    return checkpoint(output)


@pytest.mark.parametrize("task", every(6, list(TASKS)))
def test_two_steps(task: str, data_root: Path, tmp_path: Path) -> None:
    losses, metrics = TASKS[task]
    tested = run(task, tmp_path, data_root)["metrics"]
    assert {f"test/{name}" for name in metrics} <= set(tested)
    assert all(math.isfinite(value) for value in tested.values())
    if task in EVALUATED:
        assert tested["test/evaluated"] == EVALUATED[task]
    found = logged(tmp_path)
    for name in losses:
        assert len(found[f"train/{name}"]) == STEPS
        assert all(math.isfinite(value) for value in found[f"train/{name}"])
    assert any(name.startswith("val/") for name in found)


def assert_kept(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor], *of: str) -> None:
    names = [name for name in after if name.startswith(tuple(f"encoders.{part}." for part in of))]
    assert names
    for name in names:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("task", every(6, list(TASKS)))
def test_starts_from_pretraining(
    task: str, pretrained: Path, data_root: Path, tmp_path: Path
) -> None:
    start = [f"+warm_start.path={pretrained}", "+warm_start.kind=pretrained"]
    run(task, tmp_path, data_root, *still(*start))
    before, after = weights(pretrained), weights(checkpoint(tmp_path))
    assert_kept(after, before, "visual_encoder", "text_encoder.embeddings")
    if task == "vqa":
        decoder = "encoders.text_decoder.embeddings.word.weight"
        source = before["encoders.text_encoder.embeddings.word.weight"]
        torch.testing.assert_close(after[decoder], source, rtol=0, atol=0)


def test_nlvr_starts_from_text_assignment(
    pretrained: Path, data_root: Path, tmp_path: Path
) -> None:
    start = [f"+warm_start.path={pretrained}", "+warm_start.kind=pretrained"]
    run("text_assignment", tmp_path / "first", data_root, *start)
    first = checkpoint(tmp_path / "first")
    start = [f"+warm_start.path={first}", "+warm_start.kind=assignment"]
    run("nlvr", tmp_path / "second", data_root, *still(*start))
    before, after = weights(first), weights(checkpoint(tmp_path / "second"))
    assert_kept(after, before, "visual_encoder", "text_encoder")
    teacher = "momentum_encoders.module.visual_encoder.norm.weight"
    student = after["encoders.visual_encoder.norm.weight"]
    torch.testing.assert_close(after[teacher], student)


def test_a_start_from_the_wrong_task_is_refused(
    pretrained: Path, data_root: Path, tmp_path: Path
) -> None:
    start = [f"+warm_start.path={pretrained}", "+warm_start.kind=assignment"]
    with pytest.raises(CheckpointError, match=r"warm_start\.kind=pretrained"):
        run("nlvr", tmp_path, data_root, *start)
    assert not checkpoint(tmp_path).exists()
