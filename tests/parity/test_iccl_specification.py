"""What docs/papers/iccl.md demands beyond its golden cases, section by section.

Expected values are written out in NumPy or plain loops, with nothing of `methods/`.
"""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from methods.iccl.controls import PermutedCentroids
from methods.iccl.data import LongTailData
from methods.iccl.losses import draw_lambda
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from shared.evaluation.features import Features
from shared.tasks.classifier_balancing import (
    FeatureSets,
    NearestClassMean,
    balanced_logits,
    fresh_classifier,
    train_on_features,
)
from shared.training.schedules import rate_factor

from .recording import StepWatcher, fit, recording
from .toys import MIX, SCHEDULE, changed, state_of, toy

CLASSES, ROWS = 4, 6
NETWORK: dict[str, Any] = {
    "backbone": {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [5]},
    "num_classes": CLASSES,
    "channels_last": False,
}


def iccl(kind: type[ICCL] = ICCL, **changes: Any) -> ICCL:
    head = {"hidden": None, "dim": 3, "negative_slope": 0.0}
    centroids = {"centroid_momentum": 0.99, "centroid_warm_up": 1}
    return toy(kind, 0, **({"projection": head} | NETWORK | centroids | changes))


def train(module: Any, *batches: dict[str, Tensor], epoch: int = 0) -> None:
    fit(module, list(batches), StepWatcher(lambda _: None, lambda _: None), epoch=epoch)


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    out = {}
    for images, labels, indices in (
        ("images", "labels", "indices"),
        ("partners", "partner_labels", "partner_indices"),
    ):
        out[images] = torch.randn(ROWS, 1, 6, 6, generator=g)
        out[labels] = torch.randint(CLASSES, (ROWS,), generator=g)
        out[indices] = torch.arange(ROWS)
    return out


# --- 3.3: interpolation and the forward pass ---


def drawn(count: int, alpha: float = 1.0, seed: int = 3, step: int = 7, per: str = "sample") -> Any:
    return draw_lambda({"alpha": alpha, "granularity": per}, count, seed=seed, step=step)


def test_lambda_is_uniform_and_one_per_sample() -> None:
    draws = drawn(20_000)
    assert len(draws.unique()) > 19_000
    quantiles = np.quantile(draws.numpy(), [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.02)
    assert abs(float(drawn(20_000, alpha=8.0).var()) - 0.25 / 17) < 0.001  # of Beta(8, 8)
    assert len(drawn(50, per="batch").unique()) == 1


def test_lambda_changes_with_step_and_seed_only() -> None:
    assert torch.equal(drawn(9), drawn(9))
    assert not torch.equal(drawn(9), drawn(9, seed=4))
    module = iccl()
    with recording((module, "draw_lambda")) as calls:
        train(module, batch(), batch(), batch())
    assert len({tuple(call.result.tolist()) for call in calls["draw_lambda"]}) == 3


@pytest.mark.parametrize(("joint", "sizes"), [(True, [2 * ROWS]), (False, [ROWS, ROWS])])
def test_branches_share_a_forward_or_not(joint: bool, sizes: list[int]) -> None:
    module = iccl(mix={**MIX, "joint_forward": joint})
    with recording((module.encoder, "forward")) as calls:
        module.training_step(batch(), 0)
    seen = [call.arguments["images"] for call in calls["forward"]]
    assert [len(images) for images in seen] == sizes
    assert torch.equal(torch.cat(seen)[:ROWS], batch()["images"]), "un-mixed images come first"


# --- 3.4 and 3.5: centroid losses and centroids ---


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.0), (1, 0.6), (5, 0.6)])
def test_centroid_losses_are_off_in_epoch_0(epoch: int, factor: float) -> None:
    module = iccl(w_centroid=0.6, w_agnostic=0.5, w_interp=2.0)
    with recording((module, "total_loss")) as calls:
        train(module, batch(), epoch=epoch)
    weights = calls["total_loss"][0].arguments["weights"]
    assert weights == {
        "ce_agnostic": 0.5,
        "cc_agnostic": pytest.approx(0.5 * factor),
        "ce_interp": 2.0,
        "cc_interp": pytest.approx(2.0 * factor),
    }


def test_centroids_start_at_zero_and_gather_in_epoch_0() -> None:
    module = iccl()
    assert not module.centroids.prototypes.any()
    train(module, batch())
    seen = batch()["labels"].unique()
    norms = module.centroids.prototypes.norm(dim=1)
    torch.testing.assert_close(norms[seen], torch.ones(len(seen)))
    assert norms.sum() == pytest.approx(len(seen), abs=1e-5)


def test_the_losses_of_a_step_use_the_centroids_before_it() -> None:
    module = iccl()
    with recording((module, "centroid_logits")) as calls:
        module.training_step(batch(), 0)
    assert not any(call.result.any() for call in calls["centroid_logits"])
    assert module.centroids.prototypes.any()


class TrainImages(pl.LightningDataModule):
    """One training batch, and the same images for class means."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([batch()] * 3, batch_size=None)  # type: ignore[arg-type]

    def features_dataloader(self) -> list[dict[str, Tensor]]:
        return [{name: batch()[name] for name in ("images", "labels", "indices")}]


def test_epoch_means_are_unit_means_of_eval_embeddings() -> None:
    module = iccl(centroid_mode="epoch_mean", lr=0.0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    module.eval()
    with torch.no_grad():
        z = module.encoder(batch()["images"])[1].numpy().astype(np.float64)
    expected = np.zeros((CLASSES, 3))
    for k in range(CLASSES):
        rows = z[batch()["labels"].numpy() == k]
        if len(rows):
            expected[k] = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    module.train()
    seen: list[tuple[Tensor, bool]] = []

    def before(_: Any) -> None:
        seen.append((module.centroids.prototypes.clone(), module.training))

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[StepWatcher(before, lambda _: None)],
    )  # fmt: skip
    trainer.fit(module, datamodule=TrainImages())
    for centroids, training in seen:  # in the whole epoch: no moving average beside it
        np.testing.assert_allclose(centroids.numpy(), expected, atol=1e-5)
        assert training, "train mode is back"


@pytest.mark.parametrize("seed", range(4))
def test_the_control_gives_every_class_another_centroid(seed: int) -> None:
    plain, control = iccl(), iccl(PermutedCentroids, seed=seed)
    for module in (plain, control):
        g = torch.Generator().manual_seed(3)
        module.centroids.prototypes.copy_(torch.randn(CLASSES, 3, generator=g))
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    right, wrong = plain.centroid_logits(z), control.centroid_logits(z)
    for column in range(CLASSES):
        assert not torch.allclose(wrong[:, column], right[:, column])
        assert any(torch.allclose(wrong[:, column], right[:, k]) for k in range(CLASSES))
    assert torch.equal(control.centroid_logits(z), wrong), "both branches of a step agree"


def test_the_control_changes_from_step_to_step() -> None:
    module = iccl(PermutedCentroids, lr=0.0, centroid_momentum=1.0)
    module.centroids.prototypes.copy_(torch.eye(CLASSES)[:, :3])
    with recording((module, "centroid_logits")) as calls:
        train(module, *[batch()] * 6)
    first_columns = {tuple(call.result[0].tolist()) for call in calls["centroid_logits"][::2]}
    assert len(first_columns) > 1


# --- 3.2: the two streams ---


class Positions:
    """Stands in for the reader: 40, 8 and 4 images of three classes, each of another grey."""

    labels = np.repeat(np.arange(3), [40, 8, 4])
    class_names = ("a", "b", "c")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Any, pool: Any = None) -> tuple[Any, Any]:
        return np.broadcast_to(
            indices.astype(np.uint8)[:, None, None], (len(indices), 8, 8)
        ), indices


def data(**changes: Any) -> LongTailData:
    views = {"_target_": "shared.data.views.tensors.TensorViews", "mean": [0.0], "std": [1.0]}
    recipe = {"size": 8, "recipes": {"train": {"brightness": 0.5}}}
    module = LongTailData(
        **{"dataset": {}, "augmentation": {**views, **recipe}, "batch_size": 10, **changes}
    )
    module._sets["train"] = Positions()
    return module


def epochs(module: LongTailData, count: int) -> list[list[dict[str, Tensor]]]:
    loader, found = module.train_dataloader(), []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found.append(list(loader))
    return found


def test_the_agnostic_stream_is_a_pass_and_defines_the_epoch() -> None:
    for batches in epochs(data(), 2):
        assert [len(b["images"]) for b in batches] == [10, 10, 10, 10, 10, 2]
        assert [len(b["partners"]) for b in batches] == [10, 10, 10, 10, 10, 2]
        seen = torch.cat([b["indices"] for b in batches])
        assert sorted(seen.tolist()) == list(range(52))


@pytest.mark.parametrize(
    ("gamma", "shares"),
    [
        (0.0, [40 / 52, 8 / 52, 4 / 52]),
        (1.0, [1 / 3, 1 / 3, 1 / 3]),
        (2.0, [1 / 16, 5 / 16, 10 / 16]),  # proportional to 1 / n
    ],
)
def test_the_aware_stream_follows_gamma(gamma: float, shares: list[float]) -> None:
    batches = [b for e in epochs(data(class_aware_gamma=gamma), 60) for b in e]
    drawn = torch.cat([b["partner_labels"] for b in batches])
    counts = torch.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(counts.numpy(), shares, atol=0.03)
    places = torch.cat([b["partner_indices"] for b in batches])
    assert torch.equal(drawn, torch.from_numpy(Positions.labels)[places])


def test_every_draw_of_a_repeated_image_is_augmented_anew() -> None:
    batches = epochs(data(), 1)[0]
    places = torch.cat([b["partner_indices"] for b in batches])
    values = torch.cat([b["partners"] for b in batches])[:, 0, 0, 0]
    rare = int(torch.bincount(places).argmax())
    looks = values[places == rare]
    assert len(looks) > 2
    assert len(looks.unique()) == len(looks)
    both = {int(i) for b in batches for i in b["indices"]} & set(places.tolist())
    agnostic = {int(i): v for b in batches for i, v in zip(b["indices"], b["images"], strict=True)}
    for i in both - {0}:  # image 0 is black, whatever its brightness
        assert not any(torch.equal(agnostic[i][0, 0, 0], v) for v in values[places == i])


def test_streams_and_epochs_draw_differently() -> None:
    first, second = epochs(data(second="agnostic"), 2)
    for name in ("indices", "partner_indices"):
        order = [torch.cat([b[name] for b in e]) for e in (first, second)]
        assert sorted(order[0].tolist()) == list(range(52))
        assert not torch.equal(*order)
    pairs = [torch.equal(b["indices"], b["partner_indices"]) for b in first]
    assert not any(pairs)


def test_class_balanced_batches_of_stage_2() -> None:
    batches = epochs(data(first="cycles", second=None, batch_size=12, per_class=4), 1)[0]
    assert set(batches[0]) == {"images", "labels", "indices"}
    for b in batches[:-1]:
        assert torch.bincount(b["labels"], minlength=3).tolist() == [4, 4, 4]
        assert all(len(run.unique()) == 1 for run in b["labels"].split(4)), "four in a row"


# --- 3.6: stage 2 ---


def features(rows: int, seed: int, counts: tuple[int, ...] = (30, 12, 6)) -> Features:
    """Three classes in eight dimensions, shifted away from the origin."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    centres = 1.2 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) + 1
    v = centres[y] + torch.randn(len(y), 8, generator=g)
    return Features(v, y, torch.arange(len(y)))


def test_nearest_class_mean_centres_normalises_and_measures() -> None:
    train, test = features(48, 1), features(48, 2)
    v, y, x = train.features.double().numpy(), train.labels.numpy(), test.features.double().numpy()
    centre = v.mean(axis=0)
    u = (v - centre) / np.linalg.norm(v - centre, axis=1, keepdims=True)
    q = (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)
    means = np.stack([u[y == k].mean(axis=0) for k in range(3)])
    expected = -((q[:, None] - means[None]) ** 2).sum(axis=2)
    got = NearestClassMean(train.features, train.labels, 3)(test.features)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "variants": ["crt", "lws", "tau_norm", "ncm", "probe"], "steps": 60, "batch_size": 12,
        "per_class": 4, "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "tau": None,
        "tau_grid": [0.0, 0.5, 1.0, 1.5], "distillation": {"temperature": 2.0, "weight": 0.4},
    }  # fmt: skip
    return values | changes


def stage1() -> nn.Linear:
    """A classifier that a long tail has bent: small rows for rare classes, a bias against them."""
    linear = fresh_classifier(8, 3, seed=1)
    train = features(48, 1)
    with torch.no_grad():
        means = torch.stack([train.features[train.labels == k].mean(dim=0) for k in range(3)])
        linear.weight.copy_((means - means.mean(dim=0)) * torch.tensor([[1.0], [0.5], [0.2]]))
        linear.bias.copy_(torch.tensor([6.0, 0.0, -9.0]))
    return linear


def test_tau_is_the_best_on_validation_by_macro_accuracy_and_the_bias_is_dropped() -> None:
    classifier, validation, test = stage1(), features(48, 3, (40, 6, 4)), features(48, 2)
    s = settings(variants=["tau_norm"], tau_grid=[0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
    w, v = (x.detach().double().numpy() for x in (classifier.weight, validation.features))
    y = validation.labels.numpy()
    macro = []
    for tau in s["tau_grid"]:
        hit = (v @ (w / np.linalg.norm(w, axis=1, keepdims=True) ** tau).T).argmax(axis=1) == y
        macro.append(np.mean([hit[y == k].mean() for k in range(3)]))
    best = s["tau_grid"][int(np.argmax(macro))]
    sets = FeatureSets(*[features(48, 1)] * 2, test, validation)
    logits, tau = balanced_logits(classifier, sets, s, seed=0)
    assert tau == best
    assert len(set(macro)) > 1, "tau matters here"
    x = test.features.double().numpy()
    expected = x @ (w / np.linalg.norm(w, axis=1, keepdims=True) ** best).T
    np.testing.assert_allclose(logits["tau_norm"].numpy(), expected, atol=1e-4)


def test_crt_starts_afresh_lws_keeps_the_classifier_and_the_probe_sees_other_images() -> None:
    classifier = stage1()
    before = state_of(classifier)
    train, held_out, test = features(48, 1), features(48, 4, (5, 5, 5)), features(48, 2)
    sets = FeatureSets(train, train, test, None, held_out)
    still = settings(steps=1, lr=0.0, variants=["crt", "lws", "probe"])
    logits, _ = balanced_logits(classifier, sets, still, seed=0)
    untouched = classifier(test.features).detach()
    torch.testing.assert_close(logits["lws"], untouched)  # scales start at one
    assert not torch.allclose(logits["crt"], untouched, atol=0.1)
    seen = []
    for variant in ("crt", "probe"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "shared.tasks.classifier_balancing.train_on_features",
                lambda head, data, *rest, **more: seen.append(data.labels),
            )
            balanced_logits(classifier, sets, settings(variants=[variant]), seed=0)
    assert [len(labels) for labels in seen] == [48, 15]
    assert not changed(before, classifier), "stage 1's stays as it is"


def test_balanced_training_lifts_the_rare_class() -> None:
    train, test = features(48, 1, (60, 12, 3)), features(48, 2, (20, 20, 20))
    classifier = stage1()
    logits, _ = balanced_logits(
        classifier, FeatureSets(train, train, test), settings(variants=["crt", "lws"]), seed=0
    )
    rare = test.labels == 2

    def accuracy(rows: Tensor) -> float:
        return float((rows.argmax(dim=1) == test.labels)[rare].float().mean())

    assert accuracy(classifier(test.features)) < 0.3
    assert accuracy(logits["crt"]) > 0.7
    assert accuracy(logits["lws"]) > accuracy(classifier(test.features)) + 0.2


def test_batches_of_cached_features_are_balanced_and_the_rate_falls_to_zero() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Linear):
        def forward(self, v: Tensor) -> Tensor:
            seen.append(v[:, 0])
            return super().forward(v)

    train = features(48, 1)
    places = {float(v): int(k) for v, k in zip(train.features[:, 0], train.labels, strict=True)}
    head, rates = Watch(8, 3), []
    original = torch.optim.SGD.step

    def step(self: Any, *rest: Any, **more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        train_on_features(head, train, settings(steps=8, distillation=None), seed=0)
    for values in seen:
        drawn = [places[float(v)] for v in values]
        assert [drawn.count(k) for k in range(3)] == [4, 4, 4]
    expected = [0.2 * (1 + np.cos(np.pi * t / 8)) / 2 for t in range(8)]
    np.testing.assert_allclose(rates, expected, atol=1e-9)  # the first step has the whole rate


def balanced_classifier(**changes: Any) -> BalancedClassifier:
    return toy(BalancedClassifier, 0, **NETWORK, **changes)


@pytest.mark.parametrize(
    ("learnt", "trained"),
    [("crt", {"encoder.classifier.weight", "encoder.classifier.bias"}), ("lws", {"scales"})],
)
def test_stage_2_trains_its_own_part_and_freezes_the_rest(learnt: str, trained: set[str]) -> None:
    module = balanced_classifier(learnt=learnt)
    before = state_of(module)
    one = {name: batch()[name] for name in ("images", "labels", "indices")}
    train(module, one, one)
    assert changed(before, module) == trained  # neither the backbone nor its BatchNorm statistics


def test_stage_2_scales_the_bias_too_and_learns_from_the_teacher() -> None:
    module = balanced_classifier(learnt="lws", distillation={"temperature": 2.0, "weight": 0.4})
    with torch.no_grad():
        assert module.scales is not None
        assert module.teacher is not None
        module.scales.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
        v = module.encoder.backbone(batch()["images"])
        raw = module.encoder.classifier(v)
        torch.testing.assert_close(module.classify_features(v), raw * module.scales)
        taught = module.teacher(v)
    with recording((module, "total_loss")) as calls:
        module.training_step(batch(), 0)
    found = calls["total_loss"][0].arguments
    student = (raw * module.scales).detach().double().numpy() / 2
    teacher = taught.double().numpy() / 2
    log_q = student - np.log(np.exp(student).sum(axis=1, keepdims=True))
    log_p = teacher - np.log(np.exp(teacher).sum(axis=1, keepdims=True))
    kl = 4 * (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    assert float(found["terms"]["kl"].detach()) == pytest.approx(kl, rel=1e-4)
    assert found["weights"] == {"ce": pytest.approx(0.6), "kl": 0.4}


# --- 5: learning-rate schedules ---


@pytest.mark.parametrize(
    ("changes", "times", "factors"),
    [
        (  # of CIFAR-LT
            {"cosine": None, "warm_up": 5, "milestones": [160, 180], "gamma": 0.01},
            [0, 3, 4, 5, 159, 160, 179, 180],
            [0.2, 0.8, 1.0, 1.0, 1.0, 0.01, 0.01, 1e-4],
        ),
        ({"cosine": 90}, [0, 45, 90], [1.0, 0.5, 0.0]),
        ({"cosine": None, "milestones": [3], "gamma": 0.1}, range(5), [1, 1, 1, 0.1, 0.1]),
    ],
)
def test_learning_rates(changes: dict[str, Any], times: Any, factors: list[float]) -> None:
    schedule = {**SCHEDULE, **changes}
    assert [rate_factor(t, schedule) for t in times] == pytest.approx(factors)
