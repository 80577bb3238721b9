"""PCL's equations, its E-step, and what a run keeps of it."""

import logging
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from methods.pcl import module as pcl_module
from methods.pcl.clustering import Clusters, Granularity, cluster, concentration
from methods.pcl.controls import permuted
from methods.pcl.losses import mask_shared_positives, prototype_logits, sample_negatives
from methods.pcl.module import PCL, MoCo
from shared.checkpoints.reading import load_module
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.evaluation.features import Features
from shared.experiments import arms as arms_of
from shared.experiments import table
from tests.conformance.conftest import compose_experiment
from tests.parity.toys import KMEANS, toy


def pcl(kind: type[PCL] = PCL, **changes: Any) -> PCL:
    return toy(kind, 0, **({"num_clusters": [3, 6], "queue_size": 12} | changes))


# --- losses ---


def test_gradient_reaches_the_query_only() -> None:
    tensors = [torch.rand(2, 3), torch.rand(4, 3), torch.rand(4) + 1]
    query, prototypes, density = (tensor.requires_grad_() for tensor in tensors)
    prototype_logits(query, prototypes, density).sum().backward()
    assert query.grad is not None
    assert prototypes.grad is None
    assert density.grad is None


@settings(max_examples=50)
@given(
    positives=st.lists(st.integers(0, 19), min_size=1, max_size=12),
    number=st.integers(1, 25),
    seed=st.integers(0, 2**63),
)
def test_negatives_are_other_prototypes_without_repetition(positives, number, seed) -> None:
    rows = torch.tensor(positives)

    def draw() -> Tensor:
        return sample_negatives(rows, 20, number, torch.Generator().manual_seed(seed))

    negatives = draw()
    assert torch.equal(negatives, draw())
    assert len(negatives) == min(number, 20 - len(set(positives)))
    assert len(negatives.unique()) == len(negatives)
    assert not torch.isin(negatives, rows).any()
    assert ((negatives >= 0) & (negatives < 20)).all()


def test_every_candidate_is_drawn_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [sample_negatives(torch.tensor([1]), 5, 2, generator) for _ in range(1000)]
    counts = torch.bincount(torch.cat(draws), minlength=5)
    assert counts[1] == 0
    assert (counts[[0, 2, 3, 4]] - 500).abs().max() < 60


def test_a_shared_prototype_is_nobodys_negative() -> None:
    masked = mask_shared_positives(torch.zeros(3, 4), torch.tensor([7, 2, 7]))
    infinite = torch.isinf(masked)
    assert infinite.nonzero().tolist() == [[0, 2], [2, 0]]
    assert (masked[~infinite] == 0).all()


# --- concentration ---


def test_concentration_by_hand() -> None:
    # Cluster 0: four members at distance 0.5, 0.5, 0.3, 0.3; cluster 1: two at 0.8 and 0.4;
    # cluster 2: one, cluster 3: none, so that both take the largest.
    squared = torch.tensor([0.25, 0.25, 0.09, 0.09, 0.64, 0.16, 0.01])
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    small, large = 0.4 / log(14), 0.6 / log(12)
    low = small + 0.3 * (large - small)  # 10th percentile of four values, three of them equal
    mean = (low + 3 * large) / 4
    expected = torch.tensor([low, large, large, large]) * 0.2 / mean
    torch.testing.assert_close(concentration(ids, squared, 4, 0.2), expected)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), clusters=st.integers(1, 30), temperature=st.floats(0.05, 1.0))
def test_concentration_averages_to_the_temperature(seed, clusters, temperature) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(clusters, (60,), generator=generator)
    squared = torch.rand(60, generator=generator) + 0.01
    phi = concentration(ids, squared, clusters, temperature)
    assert phi.dtype == torch.float32
    assert phi.min() > 0
    assert float(phi.mean()) == pytest.approx(temperature, rel=1e-5)


def test_concentration_of_single_members_of_rounding_and_of_a_collapse() -> None:
    phi = concentration(torch.arange(4), torch.rand(4), 6, 0.3)
    torch.testing.assert_close(phi, torch.full((6,), 0.3))
    phi = concentration(torch.tensor([0, 0]), torch.tensor([-1e-7, 0.04]), 1, 0.2)
    assert phi.tolist() == pytest.approx([0.2])
    ids = torch.arange(20) // 2
    with pytest.raises(ValueError, match=r"10 clusters hold identical features: .* collapsed"):
        concentration(ids, torch.zeros(20), 10, 0.2)


# --- clusters ---


def two_groups(indices: list[int]) -> Features:
    """Unit vectors around two directions; even places belong to the first."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[torch.arange(len(indices)) % 2]
    rows = directions + 0.05 * torch.randn(len(indices), 3, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    return Features(rows, torch.zeros(len(indices)), torch.tensor(indices))


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="9 clusters of 6 features"):
        cluster(two_groups(list(range(6))), [9], 0.2, 0, **KMEANS)


def granularity(im2cluster: list[int], number: int) -> Granularity:
    prototypes = torch.nn.functional.normalize(torch.rand(number, 5), dim=1)
    return Granularity(torch.tensor(im2cluster), prototypes, torch.rand(number) + 0.1)


def test_entropy_of_cluster_sizes() -> None:
    assert granularity([0, 1, 2, 3, -1], 4).entropy == pytest.approx(1)
    assert granularity([0, 0, 0], 4).entropy == pytest.approx(0)
    assert granularity([0, 0, 1, 1], 4).entropy == pytest.approx(0.5)
    both = Clusters(0, (granularity([0, 1], 2), granularity([0, 0], 2)))
    assert both.entropy == pytest.approx(0.5)


def test_permuted_clusters_belong_to_other_images() -> None:
    size = 40
    own = Clusters(3, tuple(granularity([-1, *range(size)], size) for _ in range(2)))
    other = permuted(own, seed=1)
    for mine, theirs in zip(own.granularities, other.granularities, strict=True):
        assert theirs.im2cluster[0] == -1
        assert (theirs.im2cluster[1:] != mine.im2cluster[1:]).all()
        assert torch.equal(theirs.im2cluster.sort()[0], mine.im2cluster.sort()[0])
        assert torch.equal(theirs.prototypes, mine.prototypes)
        assert torch.equal(theirs.density, mine.density)
    first, second = (g.im2cluster for g in other.granularities)
    assert torch.equal(first, second)  # an image's clusters at all granularities come from one
    assert not torch.equal(first, permuted(own, seed=2).granularities[0].im2cluster)
    assert torch.equal(first, permuted(own, seed=1).granularities[0].im2cluster)


# --- the module ---


class Pictures:
    """Ten un-augmented training images under indices of their own."""

    def __init__(self) -> None:
        images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        rows = torch.arange(10)
        self.batch = {"images": images, "labels": rows % 2, "indices": rows + 5}

    def features_dataloader(self) -> list[dict[str, Tensor]]:
        return [self.batch]


def start_epoch(module: PCL, epoch: int) -> None:
    trainer: Any = SimpleNamespace(datamodule=Pictures(), current_epoch=epoch)
    module.trainer = trainer
    module.on_train_epoch_start()
    module._trainer = None


def test_the_e_step_runs_once_an_epoch_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = pcl(warm_up_epochs=2)
    caplog.set_level(logging.INFO, logger="methods.pcl")
    for epoch in (0, 1):
        start_epoch(module, epoch)
        assert module.clusters is None
    start_epoch(module, 2)
    assert module.clusters is not None
    assert module.clusters.epoch == 2
    assert "E-step: epoch 2" in caplog.text
    before = module.clusters
    start_epoch(module, 2)  # a run that continues within the epoch
    assert module.clusters is before
    start_epoch(module, 3)
    assert module.clusters.epoch == 3
    assert caplog.text.count("E-step: epoch") == 2


def batch_of(module: MoCo, size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(2, size, 1, 8, 8, generator=generator)
    return {"query": images[0], "key": images[1], "indices": torch.arange(size) + 5}


def test_the_warm_up_is_moco() -> None:
    losses = [m.training_step(batch_of(m), 0) for m in (toy(MoCo, 0), toy(PCL, 0))]
    assert torch.equal(*losses)


def test_draws_depend_on_seed_step_and_granularity(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(module: PCL, step: int, number: int, rank: int = 0) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PCL, "global_step", step)
            patch.setattr(pcl_module, "rank", lambda: rank)
            return module.draw_negatives(torch.tensor([0]), 10**6, number).tolist()

    module = pcl(num_neg_proto=8)
    first = draw(module, 3, 0)
    assert first == draw(pcl(num_neg_proto=8), 3, 0)
    others = [draw(module, 4, 0), draw(module, 3, 1), draw(module, 3, 0, rank=1)]
    others.append(draw(pcl(num_neg_proto=8, seed=2), 3, 0))
    assert all(first != other for other in others)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match='prototypes must be "sampled" or "full"'):
        pcl(prototypes="all")


def test_the_queue_starts_as_unit_vectors() -> None:
    norms = toy(MoCo).queue.features.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(15))


def test_checkpoints_hold_the_clusters(tmp_path: Path) -> None:
    """The conformance suite kills a run within an epoch; clustered again it would end elsewhere."""
    module = pcl()
    start_epoch(module, 1)
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, plugins=[AtomicCheckpointIO()], accelerator="cpu"
    )
    trainer.strategy.connect(module)
    module._trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_module(tmp_path / "last.ckpt")
    assert isinstance(loaded, PCL)
    assert loaded.clusters is not None
    assert module.clusters is not None
    assert loaded.clusters.epoch == 1
    mine, theirs = (c.state_dict()["granularities"] for c in (loaded.clusters, module.clusters))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(mine, theirs, strict=True) for k in a)
    assert not any("cluster" in name for name in module.state_dict())


# --- configurations ---


def test_the_rows_of_the_specification_are_there() -> None:
    expected = {"linear_v1": 61.5, "linear_v2": 67.6, "finetune_1pct": 75.6}
    shots = ("k1", "k2", "k4", "k8", "k16", "full")
    for version, values in (
        ("v1", (46.9, 56.4, 62.8, 70.2, 74.3, 82.3)),
        ("v2", (47.9, 59.6, 66.2, 74.5, 78.3, 85.4)),
    ):
        expected |= {f"voc07_{version}_{k}": v for k, v in zip(shots, values, strict=True)}
    assert {name: row["value"] for name, row in table("pcl").items() if "metric" in row} == expected


@pytest.mark.parametrize(
    ("experiment", "values"),
    [
        (
            "imagenet_v2",
            {
                "num_clusters": [25000, 50000, 100000], "num_neg_proto": 16384, "lr": 0.03,
                "warm_up_epochs": 20, "temperature": 0.2, "key_momentum": 0.999,
                "prototypes": "sampled", "mask_shared": False, "weight_decay": 1e-4,
                "total_epochs": 200,
            },
        ),
        ("imagenet_v1", {"schedule": {"kind": "steps", "milestones": [120, 160], "gamma": 0.1}}),
        ("linear_v2", {"lr": 5.0, "weight_decay": 0.0, "freeze": True, "head_std": 0.01}),
        ("voc07_v1", {"shots": [1, 2, 4, 8, 16], "runs": 5, "costs": [0.5], "full": True}),
        ("finetune_1pct", {"freeze": False, "lr": 0.005, "total_epochs": 40}),
    ],
)  # fmt: skip
def test_values_of_the_specification(experiment: str, values: dict[str, Any]) -> None:
    config = compose_experiment(f"pcl/{experiment}")
    method = OmegaConf.to_container(config.method, resolve=False)
    trainer = {"${trainer.max_epochs}": config.trainer.max_epochs, "${.queue_size}": 16384}
    found = {key: trainer.get(str(method[key]), method[key]) for key in values}  # type: ignore[index]
    assert found == values


def test_the_arms_of_the_claim_share_network_data_and_schedule() -> None:
    arms = {name: compose_experiment(f"reproduce/pcl/{name}") for name in arms_of("pcl")}
    assert {name: arm.arm for name, arm in arms.items()} == {name: name for name in arms}
    shared = arms["moco"]
    for arm in arms.values():
        assert arm.data == shared.data
        assert arm.trainer == shared.trainer
        own = {k: v for k, v in arm.method.items() if k in shared.method and k != "_target_"}
        assert own == {k: v for k, v in shared.method.items() if k != "_target_"}
    for control, key in (("permuted", "_target_"), ("sampled", "prototypes")):
        differing = {k for k, v in arms[control].method.items() if v != arms["pcl"].method[k]}
        assert key in differing
        assert differing <= {key, "mask_shared"}
