"""PCL's evaluations: of features during training, and the VOC07 protocol."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.pcl.evaluation import LinearProbe, LowShotSVM
from methods.pcl.module import MoCo
from shared.evaluation.features import Features
from shared.tasks.frozen_features import RepresentationProbes
from tests.parity.toys import changed, state_of, toy


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "neighbours": 3, "neighbour_temperature": None, "shots": [1, 2], "runs": 2, "seed": 0,
        "clustering": True,
    } | changes  # fmt: skip


def moco() -> MoCo:
    return toy(MoCo, evaluation=settings())


def score(bank: Features, queries: Features, **changes: Any) -> dict[str, float]:
    return RepresentationProbes(settings(**changes)).score(bank, queries, width=6)


def separable(count: int, backbone_noise: float, head_noise: float) -> Features:
    """Three classes; six backbone features that tell them apart, five of the head behind."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    parts = [
        torch.eye(width)[labels] + noise * torch.randn(count, width, generator=generator)
        for width, noise in ((6, backbone_noise), (5, head_noise))
    ]
    return Features(torch.cat(parts, dim=1), labels, torch.arange(count))


def test_backbone_and_head_are_judged_apart() -> None:
    good = score(separable(60, 0.05, 9.0), separable(45, 0.05, 9.0))
    assert good["knn"] == 100
    assert good["low_shot_1"] == good["low_shot_2"] == good["low_shot"] == 100
    assert good["ami_backbone"] == pytest.approx(1)
    assert good["ami_head"] < 0.3
    other = score(separable(60, 9.0, 0.05), separable(45, 9.0, 0.05))
    assert other["knn"] < 70
    assert other["ami_head"] == pytest.approx(1)


def test_the_length_of_a_feature_does_not_count() -> None:
    bank, queries = separable(60, 0.3, 1.0), separable(45, 0.3, 1.0)
    scaled = bank._replace(features=bank.features * torch.rand(60, 1).add(0.1))
    options: dict[str, Any] = {"shots": [], "clustering": False}
    assert score(bank, queries, **options) == score(scaled, queries, **options)


def test_low_shot_is_the_mean_over_shots_and_parts_can_be_left_out() -> None:
    bank, queries = separable(60, 0.8, 1.0), separable(45, 0.8, 1.0)
    found = score(bank, queries, shots=[1, 4], clustering=False)
    assert found.keys() == {"knn", "low_shot", "low_shot_1", "low_shot_4"}
    assert found["low_shot"] == pytest.approx((found["low_shot_1"] + found["low_shot_4"]) / 2)
    few = separable(6, 0.1, 1.0)  # more neighbours than images are all images
    assert score(few, few, neighbours=200, shots=[], clustering=False).keys() == {"knn"}


class Images:
    """Eight training images, and batches of others for evaluation."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(8, 1, 8, 8, generator=generator)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(rows)
        return {"images": self.images[index], "labels": index % 2, "indices": index}

    def features_dataloader(self) -> list[dict[str, Tensor]]:
        return [self.batch([0, 1, 2, 3]), self.batch([4, 5, 6, 7])]


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_image_is_collected_once_and_then_forgotten(split: str) -> None:
    module, images, logged = moco().eval(), Images(), {}
    seen: list[tuple[Features, Features]] = []

    def score(bank: Features, queries: Features, width: int) -> dict[str, float]:
        seen.append((bank, queries))
        return {"knn": 42.0}

    module.probes.score = score  # type: ignore[method-assign]
    module.log_dict = logged.update  # type: ignore[method-assign]
    trainer: Any = SimpleNamespace(datamodule=images)
    module.trainer = trainer
    name = {"val": "validation", "test": "test"}[split]
    for _ in range(2):
        with torch.no_grad():
            for rows in ([5, 4], [7, 4]):
                getattr(module, f"{name}_step")(images.batch(rows), 0)
            getattr(module, f"on_{name}_epoch_end")()
    assert logged == {f"{split}/knn": 42.0}
    bank, queries = seen[1]
    assert queries.indices.tolist() == [4, 5, 7]
    assert bank.indices.tolist() == list(range(8))
    with torch.no_grad():
        expected = module.probes.features(module.encoder, images.images)
    torch.testing.assert_close(bank.features, expected)
    torch.testing.assert_close(queries.features, expected[[4, 5, 7]])


def test_embeddings_are_predicted() -> None:
    module = moco().eval()
    assert module.predicts == "embeddings"
    with torch.no_grad():
        embeddings = module.predict_step({"images": torch.randn(3, 1, 8, 8)}, 0)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def multi_label(count: int) -> Features:
    """Four classes, shown by one feature each; label 0 is a difficult object."""
    generator = torch.Generator().manual_seed(count)
    labels = 2 * (torch.rand(count, 4, generator=generator) > 0.6).long() - 1
    features = labels.float() + 1.5 * torch.randn(count, 4, generator=generator)
    labels[::9, 0] = 0
    return Features(features, labels, torch.arange(count))


def svm(**changes: Any) -> LowShotSVM:
    return toy(LowShotSVM, **({"shots": [1, 8], "full": True} | changes))


def test_low_shot_svm_reports_mean_and_deviation_of_every_k() -> None:
    found = svm().score(multi_label(80), multi_label(50))
    assert found.keys() == {"map_1", "map_8", "map_full", "map_std_1", "map_std_8"}
    assert 20 < found["map_1"] < found["map_8"] < found["map_full"] <= 100
    assert found["map_std_1"] > 0
    assert svm().score(multi_label(80), multi_label(50)) == found
    assert svm(seed=1).score(multi_label(80), multi_label(50))["map_1"] != found["map_1"]


def test_low_shot_svm_on_all_images_only() -> None:
    assert svm(shots=[]).score(multi_label(80), multi_label(50)).keys() == {"map_full"}
    assert "map_full" not in svm(full=False).score(multi_label(80), multi_label(50))


def test_the_linear_probe_leaves_the_backbone_alone() -> None:
    probe = toy(LinearProbe)
    before = state_of(probe.encoder)
    [optimizer], _ = probe.configure_optimizers()
    probe.train()
    batch = {"train": torch.randn(6, 1, 8, 8), "labels": torch.arange(6) % 3}
    loss = probe.training_step(batch | {"indices": torch.arange(6)}, 0)
    loss.backward()
    optimizer.step()
    assert changed(before, probe.encoder) == {"classifier.weight", "classifier.bias"}
