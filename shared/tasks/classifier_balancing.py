"""Classifiers of a long tail, rebalanced on frozen features: cRT, tau-norm, LWS, NCM, distillation.

Shapes: n or B rows, d features v, K classes; a linear classifier has weight W (K, d), bias b (K,).
Source: docs/papers/iccl.md, section 3.6; of the variants
facebookresearch/classifier-balancing@f162ade.
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.data.loading.streams import ClassCycles
from shared.evaluation.features import Features
from shared.evaluation.shots import macro_accuracy
from shared.randomness import torch_generator
from shared.training.schedules import half_cosine

VARIANTS = ("crt", "crt_distilled", "lws", "tau_norm", "ncm", "probe")


def tau_norm_logits(features: Tensor, weight: Tensor, tau: float) -> Tensor:
    """(B, K) logits of the classifier with rows w_k / ||w_k||^tau; the bias is dropped."""
    lengths = weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau
    return features @ (weight / lengths).T


def choose_tau(weight: Tensor, validation: Features, grid: Sequence[float]) -> float:
    """The tau of the best macro accuracy on the VALIDATION features, the smallest of a tie."""

    def accuracy(tau: float) -> float:
        predictions = tau_norm_logits(validation.features, weight, tau).argmax(dim=1)
        return macro_accuracy(predictions, validation.labels, len(weight))

    return max(grid, key=accuracy)


class NearestClassMean(nn.Module):
    """Negative squared distances (B, d) -> (B, K) to the class means, not normalised again, of
    u = (v - mean of all training v) / norm."""

    centre: Tensor
    means: Tensor

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int):
        super().__init__()
        self.register_buffer("centre", features.mean(dim=0))
        member = F.one_hot(labels, num_classes).to(features.dtype)
        rows = member.sum(dim=0).clamp(min=1)[:, None]
        self.register_buffer("means", member.T @ self.centred(features) / rows)

    def centred(self, features: Tensor) -> Tensor:
        return F.normalize(features - self.centre, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        return -torch.cdist(self.centred(features), self.means).square()


class LearnableScales(nn.Module):
    """LWS: o = s * (W v + b), with W and b frozen. The scale multiplies the bias too."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.scale = nn.Parameter(torch.ones_like(self.bias))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(features, self.weight, self.bias)


def fresh_classifier(features: int, num_classes: int, seed: int) -> nn.Linear:
    """A linear classifier with random weights, as `nn.Linear` draws them."""
    classifier = nn.Linear(features, num_classes)
    generator = torch_generator(seed, 0, "classifier")
    bound = 1 / sqrt(features)
    for parameter in classifier.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return classifier


def distillation_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """(B,) KL(softmax(t / T) || softmax(o / T)) of each row, the sum over classes."""
    student = (logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).log_softmax(dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def distillation_terms(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, settings: Mapping | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Terms and weights of (1 - beta) CE(o, y) + beta T^2 KL(t || o) with settings {temperature: T,
    weight: beta}; plain CE without settings or teacher."""
    ce = F.cross_entropy(logits, labels)
    if settings is None or teacher_logits is None:
        return {"ce": ce}, {}
    temperature, beta = settings["temperature"], settings["weight"]
    kl = temperature**2 * distillation_divergence(logits, teacher_logits, temperature).mean()
    return {"ce": ce, "kl": kl}, {"ce": 1 - beta, "kl": beta}


def train_on_features(
    head: nn.Module,
    data: Features,
    settings: Mapping[str, Any],
    seed: int,
    teacher: nn.Module | None = None,
) -> None:
    """Train `head` on batches of cached features, `per_class` of a class in a row, classes in
    shuffled cycles: SGD with a cosine to 0, and the distillation objective with a `teacher`.

    `settings`: steps, batch_size, per_class, lr, momentum, weight_decay and distillation.
    """
    steps, batch_size = settings["steps"], settings["batch_size"]
    cycles = ClassCycles(seed, data.labels.numpy(), settings["per_class"], steps * batch_size)
    rows = torch.from_numpy(cycles.draws(0).positions.reshape(steps, batch_size).copy())
    learnt = [parameter for parameter in head.parameters() if parameter.requires_grad]
    rates = {name: settings[name] for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(learnt, **rates)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: half_cosine(t, steps))
    for batch in rows:
        features, labels = data.features[batch], data.labels[batch]
        taught = teacher(features).detach() if teacher is not None else None
        distillation = settings["distillation"]
        terms, weights = distillation_terms(head(features), labels, taught, distillation)
        optimizer.zero_grad()
        weighted = [weights.get(name, 1.0) * term for name, term in terms.items()]
        torch.stack(weighted).sum().backward()
        optimizer.step()
        scheduler.step()


class FeatureSets(NamedTuple):
    """Cached features of the frozen encoder.

    `train`: un-augmented training images, for class means. `learnt`: the training images as cRT and
    LWS see them, augmented or not. `validation`: for the choice of tau. `held_out`: what the probe
    is trained on, where every class has examples that the representation was not trained on.
    """

    train: Features
    learnt: Features
    test: Features
    validation: Features | None = None
    held_out: Features | None = None


def feature_sets(
    features: Callable[[Any], Features], data: Any, settings: Mapping[str, Any]
) -> FeatureSets:
    """The cached `features` that the variants need of the loaders of the run's `data`; with
    `augmented_passes` 0 cRT and LWS see un-augmented images."""
    train, passes = features(data.features_dataloader()), settings["augmented_passes"]
    probed = "probe" in settings["variants"]
    return FeatureSets(
        train=train,
        learnt=features(data.augmented_dataloader(passes)) if passes else train,
        test=features(data.test_dataloader()),
        validation=features(data.val_dataloader()) if needs_validation(settings) else None,
        held_out=features(data.probe_dataloader()) if probed else None,
    )


def balanced_logits(
    classifier: nn.Linear, sets: FeatureSets, settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, Tensor], float | None]:
    """Test logits (n, K) of every variant, by the stage-1 `classifier`, and the tau that was used.

    `settings`: variants; tau (null: chosen on validation from tau_grid); and those of
    `train_on_features`, where distillation is that of `crt_distilled`.
    """
    teacher = nn.Linear(classifier.in_features, classifier.out_features)
    teacher.load_state_dict({k: v.cpu() for k, v in classifier.state_dict().items()})
    weight, bias = teacher.weight.detach(), teacher.bias.detach()
    classes, width = weight.shape
    require_sets(settings, sets.validation is not None, sets.held_out is not None)
    logits: dict[str, Tensor] = {}
    tau = None
    for variant in settings["variants"]:
        if variant == "tau_norm":
            tau = settings["tau"]
            if tau is None:
                assert sets.validation is not None
                tau = choose_tau(weight, sets.validation, settings["tau_grid"])
            logits[variant] = tau_norm_logits(sets.test.features, weight, tau)
            continue
        if variant == "ncm":
            head: nn.Module = NearestClassMean(sets.train.features, sets.train.labels, classes)
        elif variant == "lws":
            head = LearnableScales(weight, bias)
            train_on_features(head, sets.learnt, settings, seed)
        else:
            head = fresh_classifier(width, classes, seed)
            seen = sets.held_out if variant == "probe" else sets.learnt
            assert seen is not None
            taught_by = teacher if variant == "crt_distilled" else None
            train_on_features(head, seen, settings, seed, taught_by)
        logits[variant] = head(sets.test.features).detach()
    return logits, tau


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses an unknown variant, naming the known ones."""
    if unknown := [v for v in settings["variants"] if v not in VARIANTS]:
        raise ValueError(
            f"method.balancing.variants: unknown {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(VARIANTS)}"
        )


def needs_validation(settings: Mapping[str, Any]) -> bool:
    return "tau_norm" in settings["variants"] and settings["tau"] is None


def require_sets(settings: Mapping[str, Any], validation: bool, held_out: bool) -> None:
    """Refuses variants that lack the set they need, naming the keys that would provide it: before
    hours of training if asked then."""
    if needs_validation(settings) and not validation:
        raise ValueError(
            "tau is chosen on a validation set apart from the test set: set data.val_split or a "
            "fixed method.balancing.tau, or leave tau_norm out of method.balancing.variants"
        )
    if "probe" in settings["variants"] and not held_out:
        raise ValueError(
            "the probe needs a held-out set: set data.probe_split, or leave probe out of "
            "method.balancing.variants"
        )
