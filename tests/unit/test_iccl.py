"""ICCL's package: equations with hand-derived values, properties, refusals of bad settings."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from methods.iccl.baselines import LDAM, CrossEntropy, Mixup
from methods.iccl.data import LongTailData
from methods.iccl.losses import (
    draw_lambda,
    effective_weights,
    interpolated_cross_entropy,
    ldam_loss,
    ldam_margins,
)
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from shared.evaluation.features import Features
from shared.tasks.classifier_balancing import (
    FeatureSets,
    balanced_logits,
    distillation_divergence,
    distillation_terms,
)
from tests.parity.toys import SCHEDULE, changed, toy

SIZES = st.integers(2, 8)
# --- losses ---


def test_interpolated_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)]])  # probabilities 1/4 and 3/4
    loss = interpolated_cross_entropy(
        logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.25])
    )
    assert float(loss) == pytest.approx(0.25 * np.log(4) + 0.75 * np.log(4 / 3))


@given(rows=SIZES, classes=SIZES, seed=st.integers(0, 99))
def test_interpolated_loss_reduces_to_one_class(rows: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=g)
    y_u, y_a = torch.randint(classes, (2, rows), generator=g)
    lam = torch.rand(rows, generator=g)
    ones = torch.ones(rows)
    plain = torch.nn.functional.cross_entropy
    close = torch.testing.assert_close
    close(interpolated_cross_entropy(logits, y_u, y_a, ones), plain(logits, y_u))
    close(interpolated_cross_entropy(logits, y_u, y_a, 0 * ones), plain(logits, y_a))
    close(interpolated_cross_entropy(logits, y_u, y_u, lam), plain(logits, y_u))
    # The roles are symmetric once lambda is turned round.
    swapped = interpolated_cross_entropy(logits, y_a, y_u, 1 - lam)
    close(interpolated_cross_entropy(logits, y_u, y_a, lam), swapped)


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.randn(4, 3).bfloat16()
        labels = torch.tensor([0, 1, 2, 0])
        lam = torch.full((4,), 0.3)
        assert interpolated_cross_entropy(logits, labels, labels, lam).dtype == torch.float32


def test_negative_seeds_draw_too() -> None:
    assert len(draw_lambda({"alpha": 1.0, "granularity": "sample"}, 4, seed=-1, step=0)) == 4


# --- modules ---


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (ICCL, {"centroid_mode": "median"}, "centroid_mode='median'"),
        (ICCL, {"schedule": {**SCHEDULE, "every": "day"}}, "schedule"),
        (ICCL, {"schedule": {**SCHEDULE, "total": 3}}, "schedule"),
        (ICCL, {"balancing": {"variants": ["crt", "cbrt"]}}, "cbrt"),
        (BalancedClassifier, {"learnt": "ncm"}, r"method\.learnt='ncm'"),
        (Mixup, {"mix": {"alpha": 1.0, "granularity": "pixel"}}, r"method\.mix\.granularity"),
        (ICCL, {"mix": {"alpha": 0.0, "granularity": "sample"}}, r"method\.mix\.alpha"),
    ],
)
def test_unknown_settings_are_refused_by_name(kind: type, changes: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        toy(kind, **changes)


def test_arms_of_one_seed_start_from_the_same_network() -> None:
    assert not changed(toy(CrossEntropy, 1).state_dict(), toy(ICCL, 1))


def test_cross_entropy_sees_both_streams() -> None:
    module, g = toy(CrossEntropy), torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 6, 6, generator=g)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    both = {
        "images": images[:4], "labels": labels[:4], "indices": torch.arange(4),
        "partners": images[4:], "partner_labels": labels[4:], "partner_indices": torch.arange(2),
    }  # fmt: skip
    one = {"images": images, "labels": labels, "indices": torch.arange(6)}
    torch.testing.assert_close(module.training_step(both, 0), module.training_step(one, 0))


def test_margins_and_weights_by_hand() -> None:
    counts = torch.tensor([1, 16, 81])
    torch.testing.assert_close(ldam_margins(counts, 0.6), torch.tensor([0.6, 0.3, 0.2]))
    assert effective_weights(counts, 0.0).tolist() == [1, 1, 1]
    # Effective numbers 1, 1 + 1/2 and 1 + 1/2 + 1/4 of 1, 2 and 3 images.
    few = effective_weights(torch.tensor([1, 2, 3]), 0.5)
    inverse = torch.tensor([1, 2 / 3, 4 / 7])
    torch.testing.assert_close(few, inverse / inverse.mean())


def test_the_margin_loss_by_hand() -> None:
    cosines, labels = torch.tensor([[0.5, 0.1], [0.2, 0.4]]), torch.tensor([0, 1])
    margins, weights = torch.tensor([0.1, 0.3]), torch.tensor([1.0, 3.0])
    # Logits (4, 1) and (2, 1) of which the first and the second are right.
    first, second = np.log1p(np.exp(1 - 4)), np.log1p(np.exp(2 - 1))
    loss = ldam_loss(cosines, labels, margins, weights, scale=10.0)
    assert float(loss) == pytest.approx((first + 3 * second) / 4, rel=1e-6)


@given(seed=st.integers(0, 99), scale=st.floats(1, 40))
def test_without_margins_and_weights_it_is_cross_entropy(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    cosines, labels = 2 * torch.rand(5, 4, generator=g) - 1, torch.randint(4, (5,), generator=g)
    plain = torch.nn.functional.cross_entropy(scale * cosines, labels)
    loss = ldam_loss(cosines, labels, torch.zeros(4), torch.ones(4), scale)
    torch.testing.assert_close(loss, plain)


def test_classes_are_re_weighted_from_their_epoch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module, g = toy(LDAM, 0, num_classes=3), torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    images = torch.randn(4, 1, 6, 6, generator=g)
    batch = {"images": images, "labels": labels, "indices": torch.arange(4)}
    with pytest.raises(ValueError, match="number of training images of each class"):
        module.training_step(batch, 0)
    module.class_counts = torch.tensor([500, 30, 4])
    module.eval()
    cosines = module.cosines(images)
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(module.classify(images), 30 * cosines)
    margins = ldam_margins(module.class_counts, 0.5)
    for epoch, beta in ((0, 0.0), (1, 0.0), (2, 0.9999)):
        monkeypatch.setattr(type(module), "current_epoch", epoch)
        weights = effective_weights(module.class_counts, beta)
        expected = ldam_loss(cosines, labels, margins, weights, 30.0)
        torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_the_classifier_of_margins_has_unit_rows_and_no_bias() -> None:
    classifier = toy(LDAM, 3).encoder.classifier
    torch.testing.assert_close(classifier.weight.norm(dim=1), torch.ones(5))
    assert not classifier.bias.any()
    assert not classifier.bias.requires_grad
    with pytest.raises(ValueError, match=r"beta in \[0, 1\)"):
        toy(LDAM, beta=1.0)


def test_mixup_pairs_each_image_with_another_of_its_batch() -> None:
    module = toy(Mixup, mix={"alpha": 1.0, "granularity": "sample"}, seed=0)
    seen: list[Tensor] = []
    module.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    batch = {"images": images, "labels": torch.tensor([0, 1, 2, 0]), "indices": torch.arange(4)}
    module.training_step(batch, 0).backward()
    lam = draw_lambda({"alpha": 1.0, "granularity": "sample"}, 4, seed=0, step=0)
    expected = lam * torch.arange(4.0) + (1 - lam) * torch.arange(4.0).flip(0)
    torch.testing.assert_close(seen[0][:, 0, 0, 0], expected)


def test_a_non_finite_loss_leaves_the_centroids() -> None:
    module = toy(ICCL)
    module.centroids.prototypes.fill_(0.5)
    nan = torch.full((2, 1, 6, 6), torch.nan)
    y, places = torch.tensor([0, 1]), torch.arange(2)
    batch = {"images": nan, "labels": y, "indices": places}
    batch |= {"partners": nan, "partner_labels": y, "partner_indices": places}
    with pytest.raises(RuntimeError, match="not finite"):
        module.training_step(batch, 0)
    assert (module.centroids.prototypes == 0.5).all()


def test_stage_2_may_leave_batch_norm_in_train_mode_as_the_public_code_does() -> None:
    assert not toy(BalancedClassifier).train().encoder.backbone.training
    assert toy(BalancedClassifier, freeze_bn=False).train().encoder.backbone.training


# --- stage 2 ---


def some_features(rows: int, seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    return Features(torch.randn(rows, 4, generator=g), torch.arange(rows) % 3, torch.arange(rows))


BALANCING: dict[str, Any] = {
    "variants": ["crt"], "steps": 3, "batch_size": 6, "per_class": 2, "lr": 0.1, "momentum": 0.9,
    "weight_decay": 0.0, "tau": None, "tau_grid": [0.0, 1.0],
    "distillation": {"temperature": 2.0, "weight": 0.4},
}  # fmt: skip


@given(rows=SIZES, classes=SIZES, temperature=st.floats(0.5, 5), seed=st.integers(0, 99))
def test_divergence_is_zero_from_oneself_and_never_negative(
    rows: int, classes: int, temperature: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, rows, classes, generator=g).double()
    assert (distillation_divergence(logits, teacher, temperature) >= -1e-6).all()
    itself = distillation_divergence(logits, logits + 3.0, temperature)  # a shift changes nothing
    torch.testing.assert_close(itself, torch.zeros(rows), atol=1e-5, rtol=0)


def test_distillation_is_off_without_settings_or_teacher() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert set(distillation_terms(logits, labels, None, None)[0]) == {"ce"}
    assert set(distillation_terms(logits, labels, logits, None)[0]) == {"ce"}
    terms, weights = distillation_terms(logits, labels, logits, BALANCING["distillation"])
    assert weights == {"ce": 0.6, "kl": 0.4}
    assert float(terms["kl"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("variant", "named"), [("tau_norm", r"data\.val_split"), ("probe", r"data\.probe_split")]
)
def test_a_variant_without_its_set_is_refused(variant: str, named: str) -> None:
    classifier, test = torch.nn.Linear(4, 3), some_features(9)
    with pytest.raises(ValueError, match=named):
        balanced_logits(
            classifier, FeatureSets(test, test, test), {**BALANCING, "variants": [variant]}, seed=0
        )


def test_a_fixed_tau_needs_no_validation() -> None:
    classifier, test = torch.nn.Linear(4, 3), some_features(9)
    s = {**BALANCING, "variants": ["tau_norm"], "tau": 0.7}
    logits, tau = balanced_logits(classifier, FeatureSets(test, test, test), s, seed=0)
    assert tau == 0.7
    assert logits["tau_norm"].shape == (9, 3)


def test_rebalancing_depends_on_the_seed_alone() -> None:
    classifier, train, test = torch.nn.Linear(4, 3), some_features(12), some_features(9, 1)
    s = {**BALANCING, "variants": ["crt", "crt_distilled", "lws", "ncm"]}
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))
        runs.append(balanced_logits(classifier, FeatureSets(train, train, test), s, seed)[0])
    for variant in s["variants"]:
        assert torch.equal(runs[0][variant], runs[1][variant]), variant
    assert not torch.equal(runs[0]["crt"], runs[2]["crt"])
    assert not torch.equal(runs[0]["crt"], runs[0]["crt_distilled"])


# --- data ---


def test_an_unknown_sampler_is_refused() -> None:
    for key in ("first", "second"):
        with pytest.raises(ValueError, match=f"data.{key}='balanced'"):
            LongTailData(dataset={}, augmentation=VIEWS, batch_size=4, **{key: "balanced"})


def test_a_progressive_sampler_moves_in_the_epochs_of_the_trainer() -> None:
    data = LongTailData(dataset={}, augmentation=VIEWS, batch_size=4, first="progressive")
    data.images = lambda split: TwoClasses()  # type: ignore[method-assign, assignment, return-value]
    for trainer, epochs in ((None, 1), (SimpleNamespace(max_epochs=7), 7)):
        data.trainer = trainer  # type: ignore[assignment]
        stream: Any = data._stream("progressive", 0)
        assert stream.epochs == epochs
        assert stream.weights.tolist() == pytest.approx(
            [stream.weights[0]] * 5 + [5 * stream.weights[0]]
        )
    data.trainer = SimpleNamespace(max_epochs=-1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"needs trainer\.max_epochs"):
        data._stream("progressive", 0)


VIEWS = {
    "_target_": "shared.data.views.tensors.TensorViews",
    "mean": [0.0],
    "std": [1.0],
    "size": 4,
    "recipes": {"train": {}},
}


class TwoClasses:
    labels = np.array([0, 0, 0, 0, 0, 1])
    class_names = ("plenty", "one")

    def __len__(self) -> int:
        return 6


def test_a_class_lost_by_a_subset_is_named() -> None:
    for seed in range(20):
        data = LongTailData(
            dataset={}, augmentation=VIEWS, batch_size=2, subset=3, subset_seed=seed
        )
        data._sets["train"] = TwoClasses()  # type: ignore[assignment]
        if 5 not in data.train_indices:
            break
    with pytest.raises(ValueError, match="no training image of class 'one'"):
        data.setup("fit")


def test_a_batch_larger_than_the_set_is_refused() -> None:
    data = LongTailData(dataset={}, augmentation=VIEWS, batch_size=7)
    data._sets["train"] = TwoClasses()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="batch_size=7"):
        data.setup("fit")


def test_augmented_passes_show_every_image_anew_and_number_the_draws() -> None:
    views = {**VIEWS, "recipes": {"train": {"brightness": 0.5}}}
    data = LongTailData(dataset={}, augmentation=views, batch_size=2, eval_batch_size=4)

    class Grey(TwoClasses):
        def take(self, indices: Any, pool: Any = None) -> tuple[Any, Any]:
            return np.full((len(indices), 4, 4), 100, np.uint8), indices

    data._sets["train"] = Grey()  # type: ignore[assignment]
    batches = list(data.augmented_dataloader(3))
    assert torch.equal(torch.cat([b["indices"] for b in batches]), torch.arange(18))
    assert torch.cat([b["labels"] for b in batches]).tolist() == [0, 0, 0, 0, 0, 1] * 3
    looks = torch.cat([b["images"] for b in batches])[:, 0, 0, 0]
    assert len(looks.unique()) == 18
    again = torch.cat([b["images"] for b in data.augmented_dataloader(3)])[:, 0, 0, 0]
    assert torch.equal(looks, again)
