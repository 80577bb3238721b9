"""Every file under conf/ composes, and every paper row builds and says which data it lacks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.chaos import ALWAYS, load_plan
from shared.data.errors import DataNotFoundError
from shared.overrides import CONF

FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [str(f.relative_to("experiment")) for f in FILES if f.parts[0] == "experiment"]
SHARED = [e for e in EXPERIMENTS if e.endswith("_base") or "/paper_" in e]
CLASSES = {"cifar10": 10, "stl10": 10, "svhn": 10, "cifar100": 100}  # of readers of one data set
CLASSES |= {"imagenet": 1000, "imagenet_fraction": 1000}
ROWS = [e for e in EXPERIMENTS if "paper" in OmegaConf.load(CONF / "experiment" / f"{e}.yaml")]
ROWS = [e for e in ROWS if not e.startswith("iccl/")]  # without figures: test_iccl_configs.py
STEPS = ["pretrain_4m", "pretrain_14m", "pretrain_webdataset", "text_assignment"]
STEPS = [f"albef/{step}" for step in (*STEPS, "retrieval_coco_4m")]  # towards rows; no figures


def composed(*overrides: str, name: str = "config", whole: bool = False) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=whole)


def resolved(experiment: str, tmp_path: Path) -> dict[str, Any]:
    """The config of a run, with its data in an empty place."""
    config = composed(f"experiment={experiment}", f"data_root={tmp_path}", whole=True)
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file: Path) -> None:
    group, option = str(file.parent), file.name
    if group == ".":
        composed(name=option)
    elif file.parts[0] == "experiment":
        # What experiments share may leave the method to them.
        open_method = ["method=comatch"] if str(file.relative_to("experiment")) in SHARED else []
        composed(f"experiment={file.relative_to('experiment')}", *open_method)
    elif file.parts[0] == "backbone":
        composed("method=comatch", "data=cifar10", f"backbone@method.backbone={option}")
    elif group.startswith("hydra"):
        composed(f"{group}={option}", whole=True)
    elif group == "sweep":
        composed("experiment=comatch/mini", f"+sweep={option}", whole=True)
    elif file.parts[0] == "reproduce":
        claim = OmegaConf.load(CONF / file.with_suffix(".yaml"))
        for experiment in (*claim.arms.values(), *claim.get("prepare", {}).values()):
            composed(f"experiment={experiment}")
    elif group == "chaos":
        plan = load_plan(option)
        composed(f"experiment={plan.experiment}", *ALWAYS, *plan.overrides)
    else:
        composed(f"{group}={option}")


def test_the_rows_of_the_papers_table_are_there() -> None:
    expected = {f"cifar10_{n}{m}" for n in (40, 250, 4000) for m in ("", "_fixmatch")}
    expected |= {f"cifar10_{n}_simclr" for n in (20, 40, 80)}
    expected |= {f"cifar100_{n}{m}" for n in (400, 2500, 10000) for m in ("", "_fixmatch")}
    expected |= {f"stl10_1000{m}" for m in ("", "_fixmatch", "_simclr")}
    expected |= {f"imagenet_1pct{m}" for m in ("", "_fixmatch", "_moco")}
    expected |= {f"imagenet_10pct{m}" for m in ("", "_moco")}
    for data, counts in [
        ("cifar10", (40, 250, 4000)),
        ("cifar100", (400, 2500, 10000)),
        ("svhn", (40, 250, 1000)),
    ]:
        expected |= {f"usb_{data}_{n}{m}" for n in counts for m in ("", "_fixmatch")}
    assert {row.removeprefix("comatch/") for row in ROWS if row.startswith("comatch/")} == expected


def header_of(experiment: str) -> str:
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    return text.split("defaults:")[0].replace("\n# ", " ")


def network_of(module: Any) -> torch.nn.Module:
    return module.encoders if hasattr(module, "encoders") else module.encoder


def rate_of(module: Any) -> float:
    """At the start of a training of some steps."""
    module._trainer = SimpleNamespace(estimated_stepping_batches=100)
    configured = module.configure_optimizers()
    optimizer = configured[0][0] if isinstance(configured, tuple) else configured
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("experiment", ROWS)
def test_figures_of_a_paper_row(experiment: str, tmp_path: Path) -> None:
    header, paper = header_of(experiment), resolved(experiment, tmp_path)["paper"]
    assert set(paper) == {"table", "metric", "value", "std", "source", "gpu_hours"}
    assert f"{paper['value']:g}" in header.replace("0 ", " ") or str(paper["value"]) in header
    assert 0 < paper["value"] <= 100
    assert f"about {paper['gpu_hours']} GPU-hours" in header
    assert "Expect" in header


@pytest.mark.parametrize("experiment", [*ROWS, *STEPS])
def test_paper_row(experiment: str, tmp_path: Path) -> None:
    """Its header says what a reader needs; it builds; without data it says what belongs where."""
    header = header_of(experiment)
    assert f"experiment={experiment}" in header
    for word in ("GPU-hours", "our estimate", "GPU memory"):
        assert word in header

    config = resolved(experiment, tmp_path)
    # The adaptations of miniatures to short runs must never leak into a paper row.
    method = config["method"]
    assert method.get("backbone", {}).get("bn_momentum", 0.001) == 0.001
    assert not method.get("ema_warm_up", False)

    with torch.device("meta"):  # shapes only: a row has up to 400 M parameters and four queues
        module = instantiate(method, _recursive_=False, _convert_="all")
    assert sum(p.numel() for p in network_of(module).parameters()) > 1_000_000
    reader = config["data"].get("dataset", {}).get("_target_", "").rpartition(".")[2]
    if "num_classes" in module.hparams and reader in CLASSES:
        assert module.hparams["num_classes"] == CLASSES[reader]
    if not config["evaluate_only"]:
        assert rate_of(module) == (method.get("head_lr") or method["lr"])

    data = instantiate(config["data"], _recursive_=False, _convert_="all")
    with pytest.raises(DataNotFoundError) as caught:
        data.setup("fit")
    assert str(tmp_path) in str(caught.value), "names where it looked"
    assert "data_root=DIR" in str(caught.value) or "TENFOLD_DATA" in str(caught.value)


def test_parameter_counts_of_the_paper(tmp_path: Path) -> None:
    for experiment, expected in [
        ("comatch/cifar10_40", 1_492_378),
        ("comatch/cifar10_40_fixmatch", 1_467_610),
        ("comatch/cifar100_400", 23_696_500),
        ("comatch/cifar100_400_fixmatch", 23_401_012),
        ("comatch/imagenet_1pct", 30_015_656),
    ]:
        config = resolved(experiment, tmp_path)
        with torch.device("meta"):
            module = instantiate(config["method"], _recursive_=False, _convert_="all")
        assert sum(p.numel() for p in module.encoder.parameters()) == expected, experiment


@pytest.mark.parametrize(
    ("experiment", "values"),
    [
        ("cifar10_40", {"threshold": 0.95, "graph_threshold": 0.8, "lambda_c": 1.0, "lr": 0.03}),
        ("stl10_1000", {"lambda_c": 5.0, "temperature": 0.2, "weight_decay": 5e-4}),
        ("cifar100_400", {"weight_decay": 5e-4, "alpha": 0.9, "alignment_window": 32}),
        ("usb_cifar100_400", {"weight_decay": 1e-3}),
        ("imagenet_1pct", {"threshold": 0.6, "graph_threshold": 0.3, "lambda_c": 10.0}),
        ("imagenet_10pct", {"threshold": 0.5, "graph_threshold": 0.2, "lambda_c": 2.0}),
        ("imagenet_10pct_moco", {"threshold": 0.5, "graph_threshold": 0.2, "lambda_c": 2.0}),
        ("imagenet_1pct_moco", {"lambda_u": 10.0, "temperature": 0.1, "queue_size": 30000}),
    ],
)
def test_values_of_the_specification(experiment: str, values: dict[str, Any]) -> None:
    method = composed(f"experiment=comatch/{experiment}").method
    assert {key: method[key] for key in values} == values


ALBEF = {  # docs/papers/albef.md, section 5: image, batch, epochs, rates, warm-up, ramp, k
    "pretrain_4m": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "pretrain_14m": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "pretrain_webdataset": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "text_assignment": (256, 512, 1, 2e-5, 1e-5, 1e-5, 1, None, None),
    "retrieval_coco": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, 256),
    "retrieval_coco_4m": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, 256),
    "retrieval_flickr30k": (384, 256, 10, 1e-5, 1e-6, 1e-5, 1, True, 128),
    "retrieval_flickr30k_4m": (384, 256, 10, 1e-5, 1e-6, 1e-5, 1, True, 128),
    "vqa": (384, 256, 8, 2e-5, 1e-6, 1e-5, 4, True, 128),
    "nlvr2": (384, 128, 10, 2e-5, 1e-6, 1e-5, 1, True, None),
    "snli_ve": (384, 256, 5, 2e-5, 1e-6, 1e-5, 1, False, None),
    "refcoco_plus": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, None),
}


@pytest.mark.parametrize("experiment", ALBEF)
def test_values_of_albefs_specification(experiment: str, tmp_path: Path) -> None:
    config = resolved(f"albef/{experiment}", tmp_path)
    method, data = config["method"], config["data"]
    size, batch, epochs, lr, min_lr, warmup_lr, blocks, ramp, k_test = ALBEF[experiment]
    assert method["vision"]["image_size"] == data["augmentation"]["size"] == size
    assert data["batch_size"] == batch
    assert method["epochs"] == config["trainer"]["max_epochs"] == epochs
    rates = [method[key] for key in ("lr", "min_lr", "warmup_lr")]
    assert rates == [lr, min_lr, warmup_lr]
    assert (method["warmup_blocks"], method["warmup_block"]) == (blocks, 100)
    assert method["weight_decay"] == 0.02
    if ramp is not None:
        assert (method["alpha"], method["encoder_momentum"]) == (0.4, 0.995)
        assert method["ramp"] == ramp
    if k_test is not None:
        assert (
            method["evaluation"]["k_test"] if "evaluation" in method else method["k_test"]
        ) == k_test
    if "queue_size" in method:
        queue = [method[key] for key in ("queue_size", "embed_dim", "temperature")]
        assert queue == [65536, 256, 0.07]
        assert method["queue_size"] % batch == 0


def test_rows_of_albef() -> None:
    """All with a figure in docs/papers/albef.md, section 8."""
    expected = {"retrieval_coco", "retrieval_flickr30k", "retrieval_flickr30k_4m", "zero_shot_coco",
                "zero_shot_flickr30k", "zero_shot_flickr30k_pretrained", "vqa", "nlvr2", "snli_ve",
                "refcoco_plus"}  # fmt: skip
    assert {row.removeprefix("albef/") for row in ROWS if row.startswith("albef/")} == expected


def test_what_a_row_of_albef_starts_from_is_a_run_of_ours(tmp_path: Path) -> None:
    """Of an experiment that is there, and that of its kind."""
    kinds = {"pretrained": "pretrain_", "assignment": "text_assignment", "retrieval": "retrieval_"}
    for experiment in (e for e in (*ROWS, *STEPS) if e.startswith("albef/")):
        config = resolved(experiment, tmp_path)
        if (start := config["warm_start"]) is not None:
            _, method, other, seed, *rest = Path(start["path"]).parts
            assert f"{method}/{other}" in EXPERIMENTS
            assert other.startswith(kinds[start["kind"]])
            assert (seed, *rest) == ("seed0", "checkpoints", "last.ckpt")
