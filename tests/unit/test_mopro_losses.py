"""The correction rule by hand-derived values and properties; the losses on the kept rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.mopro.classifier import audit_rule
from methods.mopro.losses import Correction, correct_labels, kept_cross_entropy


@pytest.mark.parametrize(
    ("scores", "web", "label", "kept", "relabelled"),
    [
        ([0.9, 0.05, 0.05, 0.0], 0, 0, True, False),  # confident in the web label
        ([0.9, 0.05, 0.05, 0.0], 1, 0, True, True),  # confident, web label below chance
        ([0.65, 0.35, 0.0, 0.0], 1, 0, True, True),  # confidence wins over a credible web label
        ([0.55, 0.45, 0.0, 0.0], 1, 1, True, False),  # credible, nothing confident
        ([0.5, 0.3, 0.2, 0.0], 2, 2, False, False),  # below chance: placeholder, dropped
        ([0.6, 0.4, 0.0, 0.0], 2, 2, False, False),  # exactly T is not confident
        ([0.5, 0.25, 0.25, 0.0], 1, 1, False, False),  # exactly 1/K is not credible
    ],
)
def test_every_branch_of_the_rule(
    scores: list[float], web: int, label: int, kept: bool, relabelled: bool
) -> None:
    # In float64: 0.6 in float32 is above 0.6.
    rule = correct_labels(torch.tensor([scores], dtype=torch.float64), torch.tensor([web]), 0.6)
    found = (rule.labels.item(), rule.kept.item(), rule.relabelled.item())
    assert found == (label, kept, relabelled)


def random_scores(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = (3 * torch.randn(rows, classes, generator=generator)).softmax(dim=1)
    return scores, torch.randint(classes, (rows,), generator=generator)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(2, 7), st.floats(0.05, 1.05))
def test_rule_properties(seed: int, rows: int, classes: int, threshold: float) -> None:
    scores, web = random_scores(seed, rows, classes)
    before = web.clone()
    rule = correct_labels(scores, web, threshold)
    assert torch.equal(web, before)  # the batch's own labels stay
    assert (rule.kept | (rule.labels == web)).all()  # dropped rows keep a placeholder
    assert (rule.kept | ~rule.relabelled).all()  # nothing is relabelled and dropped
    assert torch.equal(rule.relabelled, rule.labels != web)
    # The rule knows no order: it commutes with permuting rows, and with renaming classes.
    order = torch.randperm(rows)
    again = correct_labels(scores[order], web[order], threshold)
    assert torch.equal(again.labels, rule.labels[order])
    names = torch.randperm(classes)
    renamed = correct_labels(scores[:, names.argsort()], names[web], threshold)
    assert torch.equal(renamed.labels, names[rule.labels])
    assert torch.equal(renamed.kept, rule.kept)
    # A higher threshold never relabels more, and never keeps more.
    stricter = correct_labels(scores, web, threshold + 0.1)
    assert (rule.relabelled | ~stricter.relabelled).all()
    assert (rule.kept | ~stricter.kept).all()


def test_no_row_kept_gives_zero_loss_and_zero_gradients() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    nothing = torch.zeros(4, dtype=torch.bool)
    loss = kept_cross_entropy(logits, Correction(torch.zeros(4).long(), nothing, nothing))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros(4, 3))


def test_audit_by_hand() -> None:
    scores = torch.tensor(
        [
            [0.95, 0.03, 0.02],  # web 1 is wrong, relabelled to the true 0
            [0.95, 0.03, 0.02],  # web 1 is right, relabelled to a wrong 0
            [0.20, 0.40, 0.40],  # web 2 is right, kept
            [0.40, 0.50, 0.10],  # web 2 is right, dropped
            [0.01, 0.01, 0.98],  # OOD, relabelled
            [0.45, 0.50, 0.05],  # OOD, dropped
        ]
    )
    web, true = torch.tensor([1, 1, 2, 2, 0, 2]), torch.tensor([0, 1, 2, 2, -1, -1])
    found = audit_rule(scores, web, true, 0.9)
    expected = {
        "kept_in": 75,
        "kept_out": 50,
        "relabel_precision": 100 / 3,
        "relabel_recall": 100,
        "label_accuracy": 200 / 3,
        "ood_precision": 50,
        # web-label scores 0.03 0.03 0.40 0.10 in, 0.01 0.05 out: 6 of 8 pairs in order
        "ood_auroc": 75,
        # largest scores 0.95 0.95 0.40 0.50 in, 0.98 0.50 out: 2 and a half of 8
        "ood_auroc_max": 100 * 2.5 / 8,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-3), name


def test_audit_leaves_out_shares_of_nothing() -> None:
    scores, labels = torch.eye(3), torch.arange(3)
    found = audit_rule(scores, labels, labels, 0.9)
    assert found == {"kept_in": 100, "label_accuracy": 100}
    everything_else = audit_rule(scores, labels, torch.full((3,), -1), 0.9)
    assert everything_else == {"kept_out": 100}
