"""Scores of the correction rule on web images whose true labels are known.

Percentages over n images; a true label of -1 marks an image that is out of distribution (OOD).
"""

from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from methods.mopro.losses import correct_labels


def audit_rule(
    scores: Tensor, web_labels: Tensor, true_labels: Tensor, threshold: float
) -> dict[str, float]:
    """Kept shares, correctness of the corrected labels, detection of the OOD images.

    A figure that would be a share of nothing is left out.

    Args: scores (n, K) soft labels; web_labels (n,); true_labels (n,), -1 if OOD; threshold T.

    Returns: in percent
        kept_in, kept_out: kept images among those in and out of distribution.
        relabel_precision: relabelled images whose new label is true (an OOD image has none).
        relabel_recall: wrongly labelled images in distribution that got their true label.
        label_accuracy: kept images in distribution whose corrected label is true.
        ood_precision: images dropped that are OOD (`100 - kept_out` is the recall).
        ood_auroc: how well a low score of the web label tells OOD images; chance is 50.
        ood_auroc_max: the same with the largest score of any class.
    """
    rule = correct_labels(scores, web_labels, threshold)
    ood, kept = true_labels < 0, rule.kept
    right = rule.labels == true_labels
    wrong_before = ~ood & (web_labels != true_labels)
    shares = {
        "kept_in": (kept, ~ood),
        "kept_out": (kept, ood),
        "relabel_precision": (right, rule.relabelled),
        "relabel_recall": (right, wrong_before),
        "label_accuracy": (right, kept & ~ood),
        "ood_precision": (ood, ~kept),
    }
    values = {
        name: 100 * float(hits[among].float().mean())
        for name, (hits, among) in shares.items()
        if among.any()
    }
    if ood.any() and not ood.all():
        web_score = scores.gather(1, web_labels[:, None]).squeeze(1)
        for name, score in (("ood_auroc", web_score), ("ood_auroc_max", scores.amax(dim=1))):
            values[name] = 100 * float(binary_auroc(1 - score.clamp(0, 1), ood.long()))
    return values
