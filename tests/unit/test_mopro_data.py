"""The truth about web images is for the audit alone; cleaning writes what retraining reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from methods.mopro import cleaning
from methods.mopro.data import WebData
from methods.mopro.module import CrossEntropy, MoPro
from methods.mopro.retraining import RetrainingData, SquareRootPass, repeat_factors
from shared.data.errors import DataCorruptError, DataNotFoundError
from tests.conformance.conftest import compose_experiment
from tests.parity.toys import changed, state_of, toy

CLASSES, SIDE = 3, 12
SOURCES = {"google": 14, "flickr": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A web of 24 pictures: one brightness per class, every fourth of no class."""
    root = tmp_path_factory.mktemp("web")
    generator = np.random.default_rng(0)
    truth: dict[str, dict[str, Any]] = {}
    (root / "info").mkdir()
    (root / "secret").mkdir()
    for source, count in SOURCES.items():
        lines = []
        (root / source).mkdir()
        for n in range(count):
            label = None if n % 4 == 3 else int(generator.integers(CLASSES))
            web = n % CLASSES if label is None or n % 5 == 0 else label
            level = 255 if label is None else 60 * label
            pixels = np.full((SIDE, SIDE), level, np.uint8)
            path = f"{source}/{n:03d}.png"
            Image.fromarray(pixels).save(root / path)
            truth[path] = {"label": label, "kind": "any"}
            lines.append(f"{path} {web}\n")
        (root / "info" / f"train_filelist_{source}.txt").write_text("".join(lines))
    (root / "secret" / "web_truth.json").write_text(json.dumps(truth))
    return root


def data(root: Path, kind: type = WebData, more: Any = None, **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "dataset": {
            "_target_": "shared.data.readers.webvision.webvision",
            "root": str(root),
            "num_classes": CLASSES,
            "in_memory": True,
            "mode": "L",
            **(more or {}),
        },
        "augmentation": {
            "_target_": "shared.data.views.tensors.TensorViews",
            "size": SIDE,
            "mean": [0.5],
            "std": [0.5],
            "recipes": {"weak": {"flip": 0.5}, "strong": {"zoom": 0.7}},
        },
        "views": ["weak", "strong"],
        "batch_size": 8,
        "val_split": "train",
        "test_split": "train",
    }
    if kind is WebData:
        arguments |= {"truth": str(root / "secret" / "web_truth.json"), "audit_images": 10}
    return kind(**(arguments | changed))


def mopro(kind: type = MoPro, **changes: Any) -> Any:
    values = {"num_classes": CLASSES, "threshold": 0.6, "start_clean_epoch": 1, "queue_size": 16}
    return toy(kind, 0, **(values if kind is MoPro else {"num_classes": CLASSES}) | changes)


def fit(module: pl.LightningModule, datamodule: WebData) -> dict[str, Tensor]:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=datamodule)
    return dict(trainer.callback_metrics)


def test_training_never_sees_the_truth(root: Path, tmp_path: Path) -> None:
    """Other true labels, or none, change the audit and not a single weight."""
    truth = json.loads((root / "secret" / "web_truth.json").read_text())
    lies = {path: {"label": 0} for path in truth}
    (tmp_path / "lies.json").write_text(json.dumps(lies))
    states, metrics = [], []
    for path in (str(root / "secret" / "web_truth.json"), str(tmp_path / "lies.json"), None):
        module, datamodule = mopro(), data(root, truth=path)
        metrics.append(fit(module, datamodule))
        states.append(state_of(module))
        names = {"weak", "strong", "labels", "indices"}
        assert set(next(iter(datamodule.train_dataloader()))) == names
        assert not changed(states[0], module)
    assert metrics[0]["val/top1"] == metrics[1]["val/top1"] == metrics[2]["val/top1"]
    assert "val/ood_auroc" in metrics[0]
    assert "val/kept_out" in metrics[0]
    assert "val/kept_out" not in metrics[1]  # nothing is out of distribution there
    assert not any("kept_in" in name for name in metrics[2])


def test_cross_entropy_is_audited_too(root: Path) -> None:
    metrics = fit(mopro(CrossEntropy), data(root, views=["weak"]))
    assert {"val/kept_in", "val/label_accuracy", "val/ood_auroc"} <= metrics.keys()


def test_true_labels_follow_the_lists(root: Path) -> None:
    datamodule = data(root)
    truth = json.loads((root / "secret" / "web_truth.json").read_text())
    expected = [-1 if entry["label"] is None else entry["label"] for entry in truth.values()]
    assert datamodule.true_labels.tolist() == expected
    assert -1 in expected


def test_audit_looks_at_some_images_in_validation_and_at_all_in_the_test(root: Path) -> None:
    datamodule = data(root)

    def indices(split: str) -> list[int]:
        loader = datamodule.audit_dataloader(split)
        assert loader is not None
        return torch.cat([batch["indices"] for batch in loader]).tolist()

    assert len(indices("val")) == 10
    assert indices("val")[0] == 0
    assert indices("val")[-1] == 23
    assert indices("test") == list(range(24))
    assert data(root, truth=None).audit_dataloader("val") is None


def test_bad_truth_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"absent\.json"):
        data(root, truth=str(tmp_path / "absent.json")).true_labels  # noqa: B018
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"google/000.png": {"label": 1}}))
    with pytest.raises(DataCorruptError, match=r"some.json: no true label of each image"):
        data(root, truth=str(path)).true_labels  # noqa: B018


def test_truth_of_other_lists_is_refused(root: Path) -> None:
    datamodule = data(root)
    datamodule.images("train").labels = np.roll(datamodule.images("train").labels, 1)
    with pytest.raises(DataCorruptError, match="not that of the lists"):
        datamodule.true_labels  # noqa: B018


def test_cleaning_by_hand(root: Path) -> None:
    """The list follows the rule applied one image at a time, in list order."""
    module, datamodule = mopro(threshold=0.5).eval(), data(root)
    module.prototypes.update(torch.eye(6)[:CLASSES], torch.arange(CLASSES), 0.0)
    module.train()
    before = state_of(module)
    kept, labels, rule = cleaning.clean(module, datamodule.features_dataloader(), 0.5)
    assert module.training  # as it was
    assert not changed(before, module)
    images = datamodule.images("train")
    expected, relabelled = [], 0
    for index in range(24):
        pixels, _ = images.take(np.array([index]))
        with torch.no_grad():
            score = module.eval().scores(datamodule.transform(pixels, "test"), 0.5)[0]
        web = int(images.labels[index])
        if score.max() > 0.5:
            expected.append((index, int(score.argmax())))
            relabelled += int(score.argmax()) != web
        elif score[web] > 1 / CLASSES:
            expected.append((index, web))
    assert list(zip(kept.tolist(), labels.tolist(), strict=True)) == expected
    assert len(rule.kept) == 24
    assert int(rule.relabelled.sum()) == relabelled


def test_cleaned_list_is_what_retraining_reads(root: Path, tmp_path: Path) -> None:
    images = ["flickr/002.png", "google/001.png", "google/004.png", "google/000.png"]
    path = tmp_path / "cleaned.json"
    path.write_text(json.dumps({"images": images, "labels": [1, 2, 2, 2]}))
    options = {"views": ["weak"], "batch_size": 4}
    datamodule = data(root, RetrainingData, {"cleaned": str(path)}, **options)
    assert datamodule.images("train").labels.tolist() == [1, 2, 2, 2]
    drawn = [b["labels"].tolist() for b in datamodule.train_dataloader()]
    assert len(drawn) == 1
    assert repeat_factors(np.array([1, 2, 2, 2])).tolist() == [0, 17, 10]


def saved(module: Any, path: Path) -> Path:
    content = {"_target_": f"{type(module).__module__}.{type(module).__qualname__}"}
    content |= {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save(content, path)
    return path


def test_cleaning_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(mopro(), tmp_path / "last.ckpt")
    out = tmp_path / "cleaned.json"
    overrides = [
        "experiment=mopro/webvision_v1",
        f"data.dataset.root={root}",
        f"data.dataset.num_classes={CLASSES}",
        "data.dataset.in_memory=true",
        "data.dataset.mode=L",
        "data.augmentation.mean=[0.5]",
        "data.augmentation.std=[0.5]",
        f"data.augmentation.size={SIDE}",
        "data.augmentation.test_resize=null",
        "data.num_workers=0",
    ]
    assert cleaning.main([str(checkpoint), str(out), *overrides]) == 0
    written = json.loads(out.read_text())
    said = capsys.readouterr().out
    assert f"{len(written['images'])} of 24 images kept" in said
    listed = [
        line.split()[0]
        for source in SOURCES
        for line in (root / "info" / f"train_filelist_{source}.txt").read_text().splitlines()
    ]
    places = [listed.index(image) for image in written["images"]]
    assert places == sorted(places)
    # What is wrong comes in one line.
    assert cleaning.main([str(tmp_path / "no.ckpt"), str(out), *overrides]) == 2
    assert cleaning.main([str(checkpoint), str(out), "experiment=mopro/webvision_v9"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_baseline_has_no_prototypes_to_clean_with(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(mopro(CrossEntropy), tmp_path / "last.ckpt")
    arguments = [str(path), str(tmp_path / "out.json"), "experiment=mopro/webvision_v1"]
    assert cleaning.main(arguments) == 2
    assert "needs MoPro's prototypes" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_miniature_config_keeps_the_truth_out_of_the_reader() -> None:
    config = compose_experiment("mopro/mini")
    assert "secret" in config.data.truth
    assert "secret" not in str(config.data.dataset)
    assert "secret" not in str(config.method)


# --- square-root balanced epochs ---

LABELS = np.repeat([0, 1, 2], [400, 100, 25])


def test_factors_by_hand() -> None:
    assert repeat_factors(LABELS).tolist() == [10, 20, 40]
    assert repeat_factors(np.array([0, 0, 2])).tolist() == [10, 0, 14]  # an absent class gets none


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_factors_grow_with_rarity_and_round_down(counts: list[int]) -> None:
    factors = repeat_factors(np.repeat(np.arange(len(counts)), counts))
    order = np.argsort(counts)
    assert (np.diff(factors[order]) <= 0).all()
    exact = 10 * np.sqrt(max(counts) / np.array(counts))
    assert (factors <= exact + 1e-9).all()
    # Official rounding: what is exactly an integer may come out one lower, 10 as 9 even.
    assert (factors > exact - 1 - 1e-9).all()


def test_class_shares_follow_the_square_root() -> None:
    stream = SquareRootPass(3, LABELS)
    drawn = np.concatenate([LABELS[stream.draws(epoch).positions] for epoch in range(40)])
    share = np.bincount(drawn) / len(drawn)
    # listed 4000, 2000, 1000 of 7000
    assert share == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.02)


def test_epoch_is_a_function_of_seed_and_epoch() -> None:
    def positions(seed: int, epoch: int) -> list[int]:
        return SquareRootPass(seed, LABELS).draws(epoch).positions.tolist()

    assert len(SquareRootPass(0, LABELS)) == len(positions(0, 0)) == len(LABELS)
    assert positions(0, 1) == positions(0, 1)
    assert positions(0, 1) != positions(0, 2)
    assert positions(0, 1) != positions(1, 1)


def test_no_image_is_drawn_more_often_than_it_is_listed() -> None:
    counts = np.bincount(SquareRootPass(0, LABELS).draws(0).positions, minlength=len(LABELS))
    assert (counts <= repeat_factors(LABELS)[LABELS]).all()
    assert counts.max() > 1


def test_repeated_images_get_other_augmentations() -> None:
    draws = SquareRootPass(0, LABELS).draws(2)
    pairs = set(zip(draws.positions.tolist(), draws.passes.tolist(), strict=True))
    assert len(pairs) == len(LABELS)
