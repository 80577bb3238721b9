"""Adapters of the PCL cases; what each name means is said in the case's `case.json`.

Everything is observed inside the real `training_step` (and, in `train_step`, Lightning's real
loop). Where a case gives logits or centroids, they stand in for what would compute them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.pcl import clustering, official
from methods.pcl import module as pcl_module
from methods.pcl.clustering import Clusters, Granularity
from methods.pcl.evaluation import LowShotSVM
from methods.pcl.module import PCL, MoCo
from shared.evaluation import low_shot
from shared.evaluation.features import Features
from shared.tasks import frozen_features

from .recording import (
    Call,
    Given,
    StepWatcher,
    fit,
    given_permutations,
    gradients_as_weights,
    recording,
    snapshot,
)
from .toys import rates, toy
from .two_processes import on_each_rank

Config, Inputs, Outputs = dict[str, Any], dict[str, Tensor], dict[str, Any]
SEED = 0
EVALUATION = {"neighbours": 1, "neighbour_temperature": None, "shots": [], "runs": 1, "seed": 0}


# --- building our modules from a case's config ---


def _tiny_resnet(c: Config) -> dict[str, Any]:
    """The cases' encoder: one block from stem_width to twice as many channels."""
    return {
        "_target_": "shared.nn.resnet.ResNet",
        "block": "basic",
        "layers": [1],
        "base_width": 2 * c["stem_width"],
        "stem": "small",
        "stem_channels": c["stem_width"],
        "strides": [2],
    }


def _flat(features: int) -> dict[str, Any]:
    """Any network of that width, to be replaced by the identity."""
    return {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [features]}


def _build(kind: type, c: Config, backbone: dict[str, Any], **changes: Any) -> Any:
    two_layers = {"hidden": None, "dim": c["dim"], "negative_slope": 0.0}
    given = {
        "backbone": backbone,
        "projection": two_layers if c.get("mlp") else {"hidden": 0, "dim": c["dim"]},
        "queue_size": c["r"], "key_momentum": c.get("m", 0.999), "temperature": c.get("T", 0.2),
        "lr": c.get("lr", 0.03), "momentum": c.get("momentum", 0.9),
        "weight_decay": c.get("weight_decay", 1e-4), "total_epochs": c.get("epochs", 1000),
        "channels_last": False,  # the official layout: sums in another order exceed the tolerances
        "seed": SEED,
        "evaluation": EVALUATION | {"clustering": False},
    }  # fmt: skip
    return toy(kind, **(given | changes))


def _moco(c: Config, backbone: dict[str, Any], schedule: dict[str, Any] | None = None) -> MoCo:
    return _build(MoCo, c, backbone, schedule=schedule or {"kind": "cosine"})


def _pcl(c: Config, backbone: dict[str, Any], negatives: int) -> PCL:
    sizes = {"num_clusters": list(c["num_cluster"]), "num_neg_proto": negatives}
    sizes |= {"warm_up_epochs": 0, "prototypes": "sampled"}
    return _build(PCL, c, backbone, **sizes)


def _load(module: MoCo, weights: Mapping[str, Tensor]) -> None:
    """Through the importer of official checkpoints, as the script would have saved this state."""
    official.load(module, {"state_dict": {f"module.{k}": v for k, v in weights.items()}})


def _names(module: MoCo) -> dict[str, Tensor]:
    """The present state under official names."""
    exported = official.export(module)["state_dict"]
    return snapshot({key.removeprefix("module."): value for key, value in exported.items()})


def _batch(query: Tensor, key: Tensor, indices: Tensor | None = None) -> dict[str, Tensor]:
    indices = torch.arange(len(query)) if indices is None else indices
    return {"query": query, "key": key, "indices": indices}


def _clusters(inputs: Inputs, count: int, epoch: int) -> Clusters:
    names = ("im2cluster", "centroids", "density")
    return Clusters(
        epoch, tuple(Granularity(*(inputs[f"{n}.{m}"] for n in names)) for m in range(count))
    )


@contextmanager
def _given_negatives(module: PCL, rows: list[list[Tensor]]) -> Iterator[None]:
    """`rows[m]`: the negatives of granularity m, one draw per step.

    The real draw is made beside: it must come from the same prototypes, all ids up to the largest
    that occurs but the batch's own.
    """
    remaining = [iter(draws) for draws in rows]
    draw = module.draw_negatives

    def given(positives: Tensor, candidates: int, number: int) -> Tensor:
        expected = next(remaining[number])
        assert module.clusters is not None
        last = int(module.clusters.granularities[number].im2cluster.max())
        others = sorted(set(range(last + 1)) - set(positives.tolist()))
        drawn = draw(positives, candidates, number).tolist()
        assert len(set(drawn)) == len(drawn) == len(expected)
        assert set(drawn) <= set(others)
        with patch.dict(module.hparams, num_neg_proto=10**6):
            assert sorted(draw(positives, candidates, number).tolist()) == others
        return expected

    with patch.object(module, "draw_negatives", given):
        yield


class GivenKeys(Given):
    """Stands in for the momentum encoder: keys, one batch per call."""

    def __init__(self, *keys: Tensor):
        super().__init__(*((None, key) for key in keys))

    def update(self, encoder: nn.Module, momentum: float) -> None:
        pass


class Images:
    """A data module of one batch, which is all the training set."""

    def __init__(self, images: Tensor):
        rows = torch.arange(len(images))
        self.batch = {"images": images, "labels": rows, "indices": rows}

    def features_dataloader(self) -> list[dict[str, Tensor]]:
        return [self.batch]


def _e_step(module: PCL, images: Tensor) -> dict[str, list[Call]]:
    """Run the epoch-start hook on these training images; what it called."""
    module.trainer = SimpleNamespace(datamodule=Images(images), current_epoch=0)  # type: ignore[assignment]
    targets = [(clustering, "assign"), (clustering, "concentration"), (pcl_module, "cluster")]
    with recording(*targets) as calls:
        module.on_train_epoch_start()
    module._trainer = None
    return calls


# --- MoCo ---


def moco_forward(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    out: Outputs = {}
    extractor = _pcl(config | {"num_cluster": [1]}, _tiny_resnet(config), negatives=1)
    _load(extractor, weights)
    out["eval_features"] = (
        _e_step(extractor, inputs["im_q"])["cluster"][0].arguments["features"].features
    )

    module = _moco(config, _tiny_resnet(config))
    _load(module, weights)
    with (
        recording((module.encoder, "forward")) as queries,
        recording((module.momentum_encoder, "forward")) as keys,
        recording((pcl_module, "instance_logits"), (F, "cross_entropy")) as calls,
        given_permutations(pcl_module, [inputs["idx_shuffle"]]),
    ):
        module.training_step(_batch(inputs["im_q"], inputs["im_k"]), 0)
    out["q"] = queries["forward"][0].result[1]
    out["k_shuffled"] = keys["forward"][0].result[1]
    out["logits"] = calls["cross_entropy"][0].arguments["input"]
    out["labels"] = calls["cross_entropy"][0].arguments["target"]
    state = _names(module)
    return out | state | {f"after.{name}": value for name, value in state.items()}


def moco_forward_v1_head(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return moco_forward(config, inputs, weights)


def moco_forward_2rank(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Real processes, because what is compared is what passes between them."""
    ranks = on_each_rank(_rank, config, inputs, weights)
    out = {f"rank{r}.{name}": value for r, rank in enumerate(ranks) for name, value in rank.items()}
    assert torch.equal(out["rank0.queue"], out["rank1.queue"]), "the ranks hold different queues"
    return out | {name: out[f"rank0.{name}"] for name in ("queue", "queue_ptr")}


def _rank(rank: int, config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _moco(config, _tiny_resnet(config))
    _load(module, weights)
    local = config["batch_per_rank"]
    rows = slice(rank * local, (rank + 1) * local)
    with (
        recording((module.momentum_encoder, "forward")) as keys,
        recording((F, "cross_entropy")) as calls,
        given_permutations(pcl_module, [inputs["idx_shuffle"]]),
    ):
        module.training_step(_batch(inputs["im_q"][rows], inputs["im_k"][rows]), 0)
    return _names(module) | {
        "logits": calls["cross_entropy"][0].arguments["input"].detach(),
        "key_input": keys["forward"][0].arguments["x"],
    }


def queue_update(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _moco(config, _flat(1))
    exported = official.export(module)
    exported["state_dict"] |= {f"module.{n}": inputs[n] for n in ("queue", "queue_ptr")}
    official.load(module, exported)
    keys = inputs["keys"]
    module.encoder = Given(*((None, key) for key in keys))  # type: ignore[assignment]
    module.momentum_encoder = GivenKeys(*keys)  # type: ignore[assignment]
    out: Outputs = {}
    for step, key in enumerate(keys):
        images = torch.zeros(len(key), 1, 1, 1)
        with given_permutations(pcl_module, [torch.arange(len(key))]):
            module.training_step(_batch(images, images), step)
        queue = {"queue": module.queue.features.T, "queue_ptr": module.queue.pointer.reshape(1)}
        out |= {f"step{step}.{name}": value.clone() for name, value in queue.items()}
    return out


# --- prototypes ---


def kmeans_concentration(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """The epoch-start hook, with features from the given "network" and given centroids."""
    features = inputs["features"]
    module = _pcl({"dim": features.shape[1], "r": 4, "T": config["temperature"]}
                  | config, _flat(1), negatives=1)  # fmt: skip
    module.momentum_encoder = GivenKeys(features)  # type: ignore[assignment]
    centroids = [inputs[f"centroids_raw.{m}"] for m in range(len(config["num_cluster"]))]
    with patch.object(clustering, "kmeans", lambda features, number, seed, **_: centroids[seed]):
        calls = _e_step(module, torch.zeros(len(features), 1, 1, 1))
    out: Outputs = {}
    assert module.clusters is not None
    for m, granularity in enumerate(module.clusters.granularities):
        out[f"im2cluster.{m}"] = granularity.im2cluster
        out[f"centroids.{m}"] = granularity.prototypes
        out[f"density.{m}"] = granularity.density
        estimated = calls["concentration"][m].arguments
        out[f"sqdist.{m}"] = estimated["squared_distances"]
        out[f"count.{m}"] = torch.bincount(estimated["ids"], minlength=estimated["number"])
    return out


def proto_logits(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    count = len(config["num_cluster"])
    negatives = [[inputs[f"neg_proto_id.{m}"]] for m in range(count)]
    module = _pcl(config, _flat(config["in_dim"]), len(negatives[0][0]))
    # There the inputs go straight into the head.
    for encoder in (module.encoder, module.momentum_encoder.module):
        encoder.backbone = nn.Identity()
    _load(module, weights)
    module.clusters = _clusters(inputs, count, epoch=0)
    # Vectors do not look like images to the layout of convolutions; nothing else is bypassed.
    module.concatenate = lambda views: torch.cat(views)  # type: ignore[method-assign]
    with (
        recording((module.encoder, "forward")) as queries,
        recording((F, "cross_entropy")) as calls,
        _given_negatives(module, negatives),
    ):
        module.training_step(_batch(inputs["x_q"], inputs["x_k"], inputs["index"]), 0)
    losses = [call.arguments for call in calls["cross_entropy"]]
    out = {"q": queries["forward"][0].result[1], "logits": losses[0]["input"]}
    for m in range(count):
        out[f"proto_logits.{m}"] = losses[1 + m]["input"]
        out[f"proto_labels.{m}"] = losses[1 + m]["target"]
    return out


def protonce_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    count, batch = len(config["num_cluster"]), len(inputs["logits"])
    logits = inputs["logits"].requires_grad_()
    prototypes = [inputs[f"proto_logits.{m}"].requires_grad_() for m in range(count)]
    dims = {"dim": 2, "r": batch * 4}
    module = _pcl(config | dims, _flat(1), prototypes[0].shape[1] - batch)
    directions = torch.eye(2)[torch.arange(batch) % 2]
    module.encoder = Given((None, directions))  # type: ignore[assignment]
    module.momentum_encoder = GivenKeys(directions)  # type: ignore[assignment]
    module.clusters = Clusters(
        0,
        tuple(
            Granularity(torch.arange(batch), torch.ones(number, 2), torch.ones(number))
            for number in config["num_cluster"]
        ),
    )
    remaining = iter(prototypes)
    images = torch.zeros(batch, 1, 1, 1)
    with (
        patch.object(pcl_module, "instance_logits", lambda *_: logits),
        patch.object(pcl_module, "prototype_logits", lambda *_: next(remaining)),
        recording((F, "cross_entropy"), (module, "total_loss")) as calls,
    ):
        loss = module.training_step(_batch(images, images), 0)
    loss.backward()
    terms = calls["total_loss"][0].arguments["terms"]
    out = {"loss": loss, "loss_inst": terms["loss_inst"], "loss_proto_mean": terms["loss_proto"]}
    out["grad.logits"] = logits.grad
    for m, rows in enumerate(prototypes):
        out[f"loss_proto.{m}"] = calls["cross_entropy"][1 + m].result
        out[f"grad.proto_logits.{m}"] = rows.grad
    return out


def train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    count, epoch = len(config["num_cluster"]), 0
    negatives = [list(inputs[f"neg_proto_id.{m}"]) for m in range(count)]
    module = _pcl(config, _tiny_resnet(config), len(negatives[0][0]))
    _load(module, weights)
    module.clusters = _clusters(inputs, count, epoch)  # of this epoch: not clustered again
    images = (inputs["im_q"], inputs["im_k"], inputs["index"])
    batches = [_batch(*values) for values in zip(*images, strict=True)]
    out: Outputs = {}

    def before_update(optimizer: torch.optim.Optimizer) -> None:
        step = len(calls["total_loss"]) - 1
        with gradients_as_weights(module.encoder):
            gradients = {f"grad.{name}": value for name, value in _names(module).items()}
        out.update({f"step{step}.{name}": value for name, value in gradients.items()})
        if step == 0:
            out.update(gradients)

    def after_step(step: int) -> None:
        for name, value in _names(module).items():
            out[f"step{step}.{name}"] = out[f"step{step}.param.{name}"] = value

    with (
        recording((module, "total_loss"), (F, "cross_entropy")) as calls,
        given_permutations(pcl_module, inputs["idx_shuffle"]),
        _given_negatives(module, negatives),
    ):
        fit(module, batches, StepWatcher(before_update, after_step), epoch)
    for step in range(len(batches)):
        total = calls["total_loss"][step]
        losses = calls["cross_entropy"][step * (1 + count) : (step + 1) * (1 + count)]
        values = {
            "loss": total.result,
            "loss_inst": total.arguments["terms"]["loss_inst"],
            "loss_proto_mean": total.arguments["terms"]["loss_proto"],
            "logits": losses[0].arguments["input"],
        }
        values |= {f"proto_logits.{m}": losses[1 + m].arguments["input"] for m in range(count)}
        out |= {f"step{step}.{name}": value for name, value in values.items()}
    return out | {f"buffer.{name}": value for name, value in _names(module).items()}


# --- schedules, evaluation ---


def lr_schedules(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    schedules = {
        "step": {"kind": "steps", "milestones": config["schedule"], "gamma": 0.1},
        "cosine": {"kind": "cosine"},
    }
    out: Outputs = {}
    for name, schedule in schedules.items():
        module = _moco({"dim": 2, "r": 2} | config, _flat(1), schedule)
        out[name] = rates(module, config["epochs"])[:, 0]
    return out


def voc_average_precision(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    out: Outputs = {}
    for case in range(config["cases"]):
        values = low_shot.average_precision(inputs[f"targets.{case}"], inputs[f"scores.{case}"])
        names = (f"precision.{case}", f"recall.{case}", f"ap.{case}")
        out |= dict(zip(names, values, strict=True))
    return out


def low_shot_svm(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    drawn = {
        tuple(int(part.lstrip("kcostrun")) for part in name.split(".")[1:]): rows
        for name, rows in inputs.items()
        if name.startswith("sampled.")
    }
    shots, costs, runs = (sorted(set(values)) for values in zip(*drawn, strict=True))
    module = LowShotSVM(_flat(1), shots, len(runs), config["costs"], True, SEED, False)
    taken = dict.fromkeys(shots, 0)

    def given(labels: Tensor, shots: int, random: Any) -> Tensor:
        cost, run = divmod(taken[shots], len(runs))
        taken[shots] += 1
        return drawn[shots, cost, run]

    sets = [
        Features(inputs[f"{split}_features"], labels, torch.arange(len(labels)))
        for split in ("train", "test")
        for labels in [inputs[f"{split}_labels"]]
    ]
    with (
        patch.object(low_shot, "sample_shots", given),
        recording((low_shot, "mean_average_precision")) as scored,
        recording((frozen_features, "low_shot_map")) as found,
    ):
        metrics = module.score(*sets)
    out = {f"result.k{k}": metrics[f"map_{k}"] for k in shots}
    out |= {"result.full": metrics["map_full"], "map_per_run": found["low_shot_map"][0].result.maps}
    decisions = [call.arguments["decision"].T for call in scored["mean_average_precision"]]
    names = [f"k{k}.cost{cost}.run{run}" for k in shots for cost in costs for run in runs]
    names += [f"full.cost{cost}" for cost in costs]
    return out | {f"decision.{n}": value for n, value in zip(names, decisions, strict=True)}
