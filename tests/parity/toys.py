"""The modules of four papers at toy size: `toy(MoPro, queue_size=4)` and so on."""

from typing import Any

import torch
from torch import Tensor, nn

from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.module import CoMatch, EMAClassifier, FixMatch
from methods.iccl.baselines import LDAM
from methods.iccl.classifier import LongTailClassifier
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from methods.mopro.classifier import WebClassifier
from methods.mopro.module import MoPro
from methods.pcl.module import PCL, MoCo
from shared.tasks.frozen_features import LowShotSVM
from shared.tasks.linear_classification import LinearClassification

from .two_processes import WORLD

PROJECTION = {"hidden": None, "dim": 6, "negative_slope": 0.1}
COLOUR = {
    "_target_": "shared.nn.small_convnet.SmallConvNet",
    "channels": [6, 8],
    "in_channels": 3,
}
KMEANS = {"iterations": 5, "restarts": 1, "max_points_per_centroid": 100, "gpu": False}
SCHEDULE = {"every": "step", "cosine": 10, "warm_up": 0, "milestones": [], "gamma": 1.0}
MIX = {"alpha": 1.0, "granularity": "sample", "joint_forward": True}
BACKBONE: dict[str, Any] = {
    "backbone": {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [4, 6]},
    "channels_last": True,
}
NETWORK = BACKBONE | {"num_classes": 5, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
EPOCHS = {"schedule": {"kind": "cosine"}, "total_epochs": 4}
# fmt: off
EMA = NETWORK | {"no_decay": ["bn"], "total_steps": 10, "ema_decay": 0.8, "ema_warm_up": False}
GRAPH = {
    "graph_threshold": 0.22, "temperature": 0.3, "alpha": 0.7, "lambda_u": 1.3, "lambda_c": 0.9,
    "alignment_window": 2, "projection": PROJECTION,
}
WEB = NETWORK | EPOCHS | {"threshold": 0.5, "projection": None}
TAIL = NETWORK | {
    "projection": None, "schedule": SCHEDULE, "balancing": None, "many": 100, "few": 20, "seed": 5,
}
MOCO = NETWORK | EPOCHS | {
    "projection": PROJECTION, "queue_size": 15, "key_momentum": 0.7, "temperature": 0.3, "seed": 5,
    "evaluation": {},
}
del MOCO["num_classes"]
TOYS: dict[type, dict[str, Any]] = {  # of classes and of what is derived from them
    CoMatch: EMA | GRAPH | {"threshold": 0.3, "bank_batches": 1, "batch_size": 4, "mu": 3},
    FixMatch: EMA | {
        "threshold": 0.3, "lambda_u": 1.3, "alignment_window": 2, "projection": None,
    },
    EMAClassifier: EMA | {"projection": None},
    CoMatchImageNet: NETWORK | GRAPH | {
        "threshold": 0.22, "graph_threshold": 0.1, "queue_size": 30, "momentums": (0.9, 0.7),
        "total_epochs": 4, "gather_graph": True, "seed": 5,
    },
    PCL: MOCO | {
        "num_clusters": [3, 5], "warm_up_epochs": 1, "prototypes": "full", "num_neg_proto": 3,
        "mask_shared": False, "kmeans": KMEANS,
    },
    MoCo: MOCO,
    MoPro: WEB | {
        "projection": PROJECTION, "temperature": 0.3, "alpha": 0.5, "start_clean_epoch": 2,
        "encoder_momentum": 0.8, "prototype_momentum": 0.7, "queue_size": 20, "w_inst": 0.8,
        "w_proto": 1.3, "seed": 5,
    },
    WebClassifier: WEB | {"views": ["weak"]},
    ICCL: TAIL | {
        "projection": PROJECTION, "temperature": 0.1, "centroid_momentum": 0.9,
        "centroid_mode": "ema", "centroid_warm_up": 0, "w_agnostic": 1.0, "w_interp": 1.0,
        "w_centroid": 1.0, "mix": MIX,
    },
    BalancedClassifier: TAIL | {"learnt": "crt", "freeze_bn": True, "distillation": None},
    LDAM: TAIL | {"margin": 0.5, "scale": 30.0, "beta": 0.9999, "reweighted_from": 2},
    LongTailClassifier: TAIL,
    LinearClassification: NETWORK | EPOCHS | {"freeze": True, "head_std": 0.01},
    LowShotSVM: BACKBONE | {"shots": [1, 2], "runs": 2, "costs": [0.5], "full": False, "seed": 0},
}
# fmt: on


def values_of(kind: type) -> dict[str, Any]:
    """The arguments of `toy(kind)`."""
    return next(values for base, values in TOYS.items() if issubclass(kind, base))


def toy(kind: type, weights: int | None = None, **changes: Any) -> Any:
    """A module of `kind` with the toy values but for `changes`; `weights` seeds its weights."""
    if weights is not None:
        torch.manual_seed(weights)
    return kind(**(values_of(kind) | changes))


def rates(module: Any, steps: int, interval: str = "epoch") -> Tensor:
    """(steps, groups) learning rates while the scheduler of `interval` steps."""
    [optimizer], [entry] = module.configure_optimizers()
    assert entry["interval"] == interval
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        entry["scheduler"].step()
    return torch.tensor(found)


def still(module: Any) -> Any:
    """`module` with BatchNorm in evaluation mode, as ranks are compared with one process."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return module


def share(batch: dict[str, Tensor], rank: int | None) -> dict[str, Tensor]:
    """One rank's part of a batch; with None all of it."""
    if rank is None:
        return batch
    return {name: value.chunk(WORLD)[rank] for name, value in batch.items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of the state that differs from `before`."""
    after = module.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The present state, copied."""
    return {name: value.clone() for name, value in module.state_dict().items()}
