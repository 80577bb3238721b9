"""Every ICCL experiment builds what it says; paper rows state their cost and what is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.claims import compose_arms, load_claim
from shared.data.errors import DataNotFoundError
from shared.overrides import CONF

FOLDER = CONF / "experiment" / "iccl"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ROWS = [name for name in EXPERIMENTS if "paper" in OmegaConf.load(FOLDER / f"{name}.yaml")]


def resolved(experiment: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "config", [f"experiment=iccl/{experiment}", *overrides], return_hydra_config=True
        )
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def built(config: dict[str, Any]) -> Any:
    with torch.device("meta"):  # shapes only
        return instantiate(config["method"], _recursive_=False, _convert_="all")


@pytest.mark.parametrize("experiment", ROWS)
def test_paper_row(experiment: str, tmp_path: Path) -> None:
    header = (FOLDER / f"{experiment}.yaml").read_text().split("defaults:")[0]
    for word in (f"experiment=iccl/{experiment}", "our estimate", "GPU memory", "Expect"):
        assert word in header
    config = resolved(experiment, f"data_root={tmp_path}")
    paper = config["paper"]
    assert set(paper) == {"table", "metric", "value", "std", "source", "gpu_hours"}
    assert f"about {paper['gpu_hours']} GPU-hours" in header
    assert config["arm"] == experiment
    if paper["value"] is None:
        assert "established" in paper["source"]  # no figure of the paper's is known
    else:
        assert f"Expect {paper['value']} %" in header
        assert paper["source"] == "classifier-balancing README"
    module = built(config)
    optimizers, _ = module.configure_optimizers()
    assert optimizers[0].defaults["lr"] == config["method"]["lr"]
    data = instantiate(config["data"], _recursive_=False, _convert_="all")
    with pytest.raises(DataNotFoundError) as caught:
        data.setup("fit")
    assert str(tmp_path) in str(caught.value), "names where it looked"


def test_every_row_of_the_specification_is_there() -> None:
    rows = {f"cifar{k}_lt_ir{ratio}" for k in (10, 100) for ratio in (10, 50, 100)}
    rows |= {f"cifar{k}_lt_ir100_{arm}" for k in (10, 100) for arm in ("ce", "mix", "crt", "lws")}
    rows |= {"imagenet_lt", "imagenet_lt_180", "imagenet_lt_crt", "imagenet_lt_lws"}
    rows |= {f"imagenet_lt_ce{end}" for end in ("", "_ncm", "_crt", "_tau_norm", "_lws")}
    rows |= {f"imagenet_lt_ce_{sampler}" for sampler in ("class_balanced", "square_root")}
    rows |= {f"inaturalist2018{end}" for end in ("", "_200", "_ce", "_crt", "_ce_crt")}
    assert rows <= set(ROWS)


@pytest.mark.parametrize(
    ("experiment", "method", "data", "epochs"),
    [
        (
            "cifar100_lt_ir100",
            {"lr": 0.1, "weight_decay": 2e-4, "momentum": 0.9, "temperature": 0.1,
             "centroid_momentum": 0.99, "w_agnostic": 1.0, "w_interp": 1.0, "w_centroid": 1.0},
            {"batch_size": 128, "class_aware_gamma": 1.0, "first": "agnostic", "second": "aware"},
            200,
        ),
        (
            "imagenet_lt", {"lr": 0.2, "weight_decay": 5e-4, "num_classes": 1000},
            {"batch_size": 512}, 90,
        ),
        (
            "inaturalist2018_200", {"lr": 0.2, "weight_decay": 1e-4, "num_classes": 8142},
            {"batch_size": 512}, 200,
        ),
        (
            "imagenet_lt_crt", {"lr": 0.2, "weight_decay": 5e-4, "learnt": "crt"},
            {"first": "cycles", "second": None, "per_class": 4}, 10,
        ),
        ("imagenet_lt_lws", {"learnt": "lws"}, {"first": "cycles"}, 5),
        ("inaturalist2018_crt", {"weight_decay": 1e-4, "freeze_bn": True}, {}, 30),
    ],
)  # fmt: skip
def test_values_of_the_specification(
    experiment: str, method: dict[str, Any], data: dict[str, Any], epochs: int
) -> None:
    config = resolved(experiment)
    assert {key: config["method"][key] for key in method} == method
    assert {key: config["data"][key] for key in data} == data
    assert config["trainer"]["max_epochs"] == epochs


def test_networks_of_the_specification() -> None:
    sizes = {}
    for name in ("cifar100_lt_ir100", "imagenet_lt", "inaturalist2018"):
        module = built(resolved(name))
        sizes[name] = (
            sum(p.numel() for p in module.encoder.backbone.parameters()),
            module.encoder.num_features,
            tuple(module.encoder.projection.fc1.weight.shape),
            tuple(module.encoder.projection.fc2.weight.shape),
        )
    assert sizes["cifar100_lt_ir100"] == (463_504, 64, (64, 64), (128, 64))
    assert sizes["imagenet_lt"] == (22_979_904, 2048, (2048, 2048), (128, 2048))
    assert sizes["inaturalist2018"] == (23_508_032, 2048, (2048, 2048), (128, 2048))


@pytest.mark.parametrize("name", ["iccl", "iccl/fashion"])
def test_arms_of_a_claim_forward_equally_many_images(name: str) -> None:
    """The same steps, images per step, network, optimiser and stage 2 for every arm."""
    claim = load_claim(CONF / "reproduce" / f"{name}.yaml")
    shared = []
    for config in compose_arms(claim).values():
        data, method = config.data, config.method
        streams = 1 if data.second is None else 2
        same = [data.batch_size * streams, config.trainer.max_steps, method.lr]
        same += [
            str(method.backbone),
            str(method.balancing),
            method.weight_decay,
            str(data.dataset),
        ]
        shared.append(same)
    assert all(same == shared[0] for same in shared)
