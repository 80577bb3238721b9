"""SemiSupervisedData: documented batches, pairing of arms, worker and rank invariance, errors."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from methods.comatch.data import SemiSupervisedData
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import FolderImages
from shared.data.loading.batches import PlainImageBatches

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_synthetic(folder / "fashion-mnist", train=300, test=50)
    return folder


def with_bases(name: str) -> Any:
    own: Any = OmegaConf.load(CONF / f"{name}.yaml")
    return OmegaConf.merge(*map(base_of, own.pop("defaults", ["_self_"])[:-1]), own)


def base_of(default: Any) -> Any:
    """What one default brings: another file of data, or a choice of a group under its package."""
    if isinstance(default, str):
        return with_bases(default)
    ((group, choice),) = default.items()
    folder, _, package = group.removeprefix("override ").strip("/").partition("@")
    return {package: OmegaConf.load(CONF.parent / folder / f"{choice}.yaml")}


@cache
def composed(name: str, root: Path) -> Any:
    whole = {"data": with_bases(name), "data_root": str(root), "seed": 0}
    return OmegaConf.to_container(OmegaConf.create(whole).data, resolve=True)


def configured(name: str, root: Path, **changes: Any) -> dict[str, Any]:
    return deepcopy(composed(name, root)) | changes


def data_module(root: Path, **changes: Any) -> SemiSupervisedData:
    small = {"batch_size": 4, "mu": 3, "steps_per_epoch": 6}
    config = configured("fashion_mnist", root, **small | changes)
    return hydra.utils.instantiate(config, _recursive_=False, _convert_="all")


def batches(root: Path, epoch: int = 0, **changes: Any) -> list[dict[str, torch.Tensor]]:
    loader = data_module(root, **changes).train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_training_batch(root: Path) -> None:
    module = data_module(root)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    images = (12, 1, 28, 28)
    assert shapes == {
        **{"labelled": (4, 1, 28, 28), "labels": (4,), "labelled_indices": (4,)},
        **{"weak": images, "strong0": images, "strong1": images},
        **{"hidden_labels": (12,), "unlabelled_indices": (12,)},
    }
    assert batch["labelled"].dtype == torch.float32
    assert batch["labels"].dtype == batch["labelled_indices"].dtype == torch.int64
    truth = torch.from_numpy(module.images("train").labels)
    assert torch.equal(truth[batch["labelled_indices"]], batch["labels"])
    assert torch.equal(truth[batch["unlabelled_indices"]], batch["hidden_labels"])
    assert not set(batch["labelled_indices"].tolist()) & set(module.train_split.unlabelled)


def test_evaluation_batches(root: Path) -> None:
    module = data_module(root, eval_batch_size=20)
    found = list(module.val_dataloader())
    assert [len(b["labels"]) for b in found] == [20, 20, 10]
    images = module.images("test")
    assert torch.equal(torch.cat([b["indices"] for b in found]), torch.arange(50))
    assert torch.cat([b["labels"] for b in found]).tolist() == images.labels.tolist()
    expected = (images.images[:, None] / 255 - 0.2860) / 0.3530
    np.testing.assert_allclose(torch.cat([b["images"] for b in found]), expected, atol=1e-5)
    assert len(list(module.test_dataloader())) == 3


def test_arms_are_paired(root: Path) -> None:
    """Whatever views an arm asks for, what it has in common with another one is identical."""
    whole = batches(root)
    for views in (["weak", "strong0"], []):
        arm = batches(root, views=views)
        assert ("weak" in arm[0]) == bool(views)
        assert equal(arm, [{k: b[k] for k in arm[0]} for b in whole])
    assert "unlabelled_indices" not in batches(root, views=[])[0]


def test_ranks_share_one_batch(root: Path) -> None:
    whole = batches(root)
    ranks = []
    for rank in range(2):
        module = data_module(root)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        ranks.append(list(module.train_dataloader()))
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            joint = torch.cat([r[step][name] for r in ranks])
            torch.testing.assert_close(joint, value, atol=1e-6, rtol=0)


def test_seeds(root: Path) -> None:
    base, reseeded = data_module(root), data_module(root, seed=1)
    resplit = data_module(root, split_seed=1)
    assert (base.train_split.labelled == reseeded.train_split.labelled).all()
    assert (base.train_split.labelled != resplit.train_split.labelled).any()
    first, other = (next(iter(module.train_dataloader())) for module in (base, reseeded))
    assert not torch.equal(first["weak"], other["weak"])


def test_a_labelled_image_looks_different_in_each_pass(root: Path) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in batches(root, num_labels=10, steps_per_epoch=20):
        for index, image in zip(batch["labelled_indices"], batch["labelled"], strict=True):
            seen.setdefault(int(index), []).append(image)
    assert all(len(images) == 8 for images in seen.values())
    views = torch.stack(next(iter(seen.values()))).flatten(1)
    assert len(torch.unique(views, dim=0)) > 4


def test_one_pass_epochs(root: Path) -> None:
    found = batches(root, steps_per_epoch=None, subset=100, batch_size=8)
    assert [len(b["weak"]) for b in found] == [24, 24, 12]
    assert len(set(torch.cat([b["unlabelled_indices"] for b in found]).tolist())) == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 400}, "num_labels=400 needs 40 labelled ones"),
        ({"num_labels": 35}, "num_labels=35 is not a positive multiple of 10 classes"),
        ({"batch_size": 100}, "batch_size \\* mu = 300 is larger than the unlabelled set"),
        ({"subset": 301}, "subset=301 but there are 300"),
    ],
)
def test_bad_values_are_refused_before_training(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_module(root, **changes).setup("fit")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_config_builds_and_says_what_is_missing(name: str, tmp_path: Path) -> None:
    config = configured(name, tmp_path)
    module = hydra.utils.instantiate(config, _recursive_=False, _convert_="all")
    evaluated = name.startswith(("msrvtt", "msvd"))  # videos are, and nothing else
    with pytest.raises(DataNotFoundError, match=r"data_root=DIR"):
        module.setup("test" if evaluated else "fit")


def test_imagenet_form(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    changes = {"num_labels": 4, "batch_size": 3, "mu": 2, "num_workers": 0}
    config = configured("imagenet", tmp_path, **changes)
    config["augmentation"] |= {"size": 32, "test_resize": 36}
    config["split"]["path"] = str(tmp_path / "split.json")
    config["dataset"]["max_corrupt"] = 0.2
    module = hydra.utils.instantiate(config, _recursive_=False, _convert_="all")
    # A labelled image that can't be read is replaced by a labelled one.
    bad = int(module.train_split.labelled[0])
    Path(module.images("train").path(bad)).write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="unreadable"):
        found = list(module.train_dataloader())
    assert [len(b["weak"]) for b in found] == [6, 2]
    assert all(len(b["labelled"]) == 3 for b in found)
    labelled = set(torch.cat([b["labelled_indices"] for b in found]).tolist())
    assert labelled <= set(module.train_split.labelled.tolist()) - {bad}
    assert len(next(iter(module.val_dataloader()))["labels"]) == 12


def test_a_batch_without_one_readable_image_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    images = FolderImages([tmp_path / "a.png"], np.zeros(1), ["a"], str(tmp_path), max_corrupt=0.5)
    batches = PlainImageBatches(images, data_module(root).transform)
    with pytest.warns(UserWarning, match=r"a.png"), pytest.raises(DataCorruptError):
        batches.__getitems__(np.zeros(1, int))
