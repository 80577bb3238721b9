"""ViewsData and ImageDataModule: documented batches, features, workers, ranks, errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from shared.data.multi_view import ViewsData

RECIPE = {"shift": 0.2, "flip": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    write_synthetic(folder, train=60, test=20)
    return folder


def data_module(root: Path, **changes: Any) -> ViewsData:
    reader = "shared.data.readers.small_images.fashion_mnist"
    recipes = {"query": RECIPE, "key": RECIPE}
    views = {"_target_": "shared.data.views.tensors.TensorViews", "size": 28, "recipes": recipes}
    values: dict[str, Any] = {
        "dataset": {"_target_": reader, "root": str(root)},
        "augmentation": views | {"mean": [0.0], "std": [1.0]},
        "views": ["query", "key"],
        "batch_size": 8,
    }
    return ViewsData(**values | changes)


def batches(root: Path, epoch: int = 0, **changes: Any) -> list[dict[str, torch.Tensor]]:
    loader = data_module(root, **changes).train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_is_one_pass_without_its_partial_batch(root: Path) -> None:
    module = data_module(root)
    module.setup("fit")
    found = batches(root)
    assert len(found) == len(module.train_dataloader()) == 7
    indices = torch.cat([b["indices"] for b in found])
    assert len(set(indices.tolist())) == len(indices) == 56
    truth = torch.from_numpy(module.images("train").labels)
    for batch in found:
        assert batch["query"].shape == batch["key"].shape == (8, 1, 28, 28)
        assert batch["query"].dtype == torch.float32
        assert batch["labels"].dtype == batch["indices"].dtype == torch.int64
        assert torch.equal(truth[batch["indices"]], batch["labels"])
        assert not torch.equal(batch["query"], batch["key"])  # two draws of one recipe


def test_fixed_steps_pass_over_the_set_again_and_again(root: Path) -> None:
    found = batches(root, steps_per_epoch=15, batch_size=16)
    assert [len(b["labels"]) for b in found] == [16] * 15
    counts = torch.bincount(torch.cat([b["indices"] for b in found]), minlength=60)
    assert set(counts.tolist()) == {4}


def test_epochs_and_seeds_differ_but_a_view_depends_on_no_other(root: Path) -> None:
    for changes in ({}, {"steps_per_epoch": 3}):
        one, other = (batches(root, epoch=2, seed=seed, **changes) for seed in (0, 1))
        assert not torch.equal(one[0]["indices"], other[0]["indices"])
    whole = batches(root)
    assert not equal(whole, batches(root, epoch=3))
    alone = batches(root, views=["key"])
    assert equal(alone, [{k: b[k] for k in ("key", "labels", "indices")} for b in whole])


def test_ranks_share_batches_and_features(root: Path) -> None:
    ranks, features = [], []
    for rank in range(2):
        module = data_module(root, subset=31)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        ranks.append(list(module.train_dataloader()))
        features.append(torch.cat([b["indices"] for b in module.features_dataloader()]))
    for step, batch in enumerate(batches(root, subset=31)):
        for name, value in batch.items():
            joint = torch.cat([r[step][name] for r in ranks])
            torch.testing.assert_close(joint, value, atol=1e-6, rtol=0)
    expected = data_module(root, subset=31).train_indices.tolist()
    assert sorted(torch.cat(features).tolist()) == expected  # none missing, none twice


def test_features_are_the_unaugmented_training_images(root: Path) -> None:
    module = data_module(root, subset=25, subset_seed=3, eval_batch_size=10)
    assert len(module.train_indices) == 25
    assert (np.diff(module.train_indices) > 0).all()
    found = list(module.features_dataloader())
    assert [len(b["indices"]) for b in found] == [10, 10, 5]
    indices = torch.cat([b["indices"] for b in found])
    assert indices.tolist() == module.train_indices.tolist()
    images = module.images("train")
    pixels = torch.from_numpy(images.images[module.train_indices])[:, None] / 255  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.cat([b["images"] for b in found]), pixels)
    assert torch.cat([b["labels"] for b in found]).tolist() == images.labels[indices].tolist()
    # Training draws from the same images.
    drawn = torch.cat([b["indices"] for b in module.train_dataloader()])
    assert set(drawn.tolist()) <= set(module.train_indices.tolist())


def test_splits_and_hyperparameters(root: Path) -> None:
    module = data_module(root, val_split="train", subset=30, steps_per_epoch=3)
    assert len(torch.cat([b["labels"] for b in module.val_dataloader()])) == 60
    assert len(torch.cat([b["labels"] for b in module.test_dataloader()])) == 20
    assert module.class_names[0] == "T-shirt/top"
    rebuilt = ViewsData(**module.hparams)
    assert dict(rebuilt.hparams) == dict(module.hparams)
    assert equal(list(module.train_dataloader()), list(rebuilt.train_dataloader()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 61}, "batch_size=61 is larger than the training set \\(60 images"),
        ({"batch_size": 61, "steps_per_epoch": 2}, "batch_size=61 is larger"),
        ({"subset": 61}, "subset=61"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_values_are_refused_before_training(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_module(root, **changes).setup("fit")
    with pytest.raises(TypeError, match="batchsize"):
        data_module(root, batchsize=3)


def test_an_unreadable_image_is_replaced_in_training_and_missing_in_features(
    tmp_path: Path,
) -> None:
    for number in range(6):
        folder = tmp_path / "train" / f"c{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "train" / "c0" / "2.png").write_bytes(b"broken")
    reader = "shared.data.readers.folders.image_folder"
    views = {"_target_": "shared.data.views.recipes.RecipeViews", "size": 8, "test_resize": None}
    module = data_module(
        tmp_path,
        dataset={"_target_": reader, "root": str(tmp_path), "max_corrupt": 0.5},
        augmentation=views
        | {"mean": [0.0] * 3, "std": [1.0] * 3, "recipes": {"view": [{"op": "flip"}]}},
        views=["view"],
        batch_size=6,
    )
    with pytest.warns(UserWarning, match=r"2\.png"):
        (batch,) = list(module.train_dataloader())
    assert sorted(batch["indices"].tolist()) == [0, 2, 2, 3, 4, 5]
    (features,) = list(module.features_dataloader())
    assert features["indices"].tolist() == [0, 2, 3, 4, 5]
