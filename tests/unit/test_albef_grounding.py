"""ALBEF's grounding module: maps of expressions under the Trainer, and what is counted of them."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.albef.grounding import Grounding, first_rows

BOXES = torch.tensor([[0.0, 0, 16, 16], [16, 0, 16, 16], [0, 16, 16, 16], [16, 16, 16, 16]])


def grounding(**changes: Any) -> Grounding:
    torch.manual_seed(3)
    arguments: dict[str, Any] = {
        "cam_layer": 2,
        "vision": {"image_size": 16, "patch_size": 4, "width": 12, "depth": 2, "heads": 3},
        "text": {
            "vocab_size": 20, "hidden_size": 16, "num_layers": 4, "num_heads": 4,
            "intermediate_size": 32, "max_positions": 8, "cross_attention_from": 1,
        },
        "embed_dim": 6, "queue_size": 8, "temperature": 0.07, "hard_negatives": True,
        "negatives": "local", "evaluation": {"k_test": 1}, "seed": 0, "encoder_momentum": 0.9,
        "alpha": 0.4, "ramp": False, "lr": 1e-3, "min_lr": 1e-4, "warmup_lr": 1e-3,
        "warmup_blocks": 0, "epochs": 1, "weight_decay": 0.0,
    }  # fmt: skip
    return Grounding(**arguments | changes)


def batch(numbers: list[int], images: int = 3) -> dict[str, Any]:
    """Expressions with their numbers, about that many images; `boxes` is the proposal of that
    number modulo 4."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, 16, 16, generator=generator)
    ids = torch.randint(1, 20, (50, 5), generator=generator)
    mask = torch.ones_like(ids)
    ids[::3, 3:] = mask[::3, 3:] = 0
    index = torch.tensor(numbers)
    return {
        "images": pixels[index % images],
        "image_ids": index % images,
        "indices": index,
        "input_ids": ids[index],
        "attention_mask": mask[index],
        "sizes": torch.tensor([[32, 32]] * len(numbers)),
        "boxes": BOXES[index % 4],
        "proposals": [BOXES.clone() for _ in numbers],
        "splits": [("val", "testA", "testB")[number % 3] for number in numbers],
    }


class Perfect(Grounding):
    """Looks where it should, but for expressions from number 40 on."""

    def cams(self, batch: Any) -> Tensor:
        numbers = batch["indices"]
        hot = (numbers + (numbers >= 40)) % 4
        return torch.nn.functional.one_hot(hot, 4).float().view(-1, 2, 2)


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=True, max_epochs=1, **options,
    )  # fmt: skip


def loader(*batches: list[int]) -> DataLoader:
    return given([batch(numbers) for numbers in batches])


def given(batches: list[dict[str, Any]]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_a_map_does_not_depend_on_the_batch(mode: str) -> None:
    module = grounding(cam_mode=mode, cam_layer=1).eval()
    whole = module.cams(batch([0, 1, 2, 3, 4]))
    assert whole.shape == (5, 4, 4)
    assert (whole.flatten(1).amax(1) > 0).all()
    for number in range(5):
        torch.testing.assert_close(module.cams(batch([number]))[0], whole[number])


def test_images_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = grounding().eval()
    seen: list[int] = []
    encode = module.encoders.encode_image
    monkeypatch.setattr(
        module.encoders, "encode_image", lambda images: seen.append(len(images)) or encode(images)
    )
    shared = module.cams(batch([0, 3, 1, 6, 4]))
    apart = module.cams(batch([0, 3, 1, 6, 4]) | {"image_ids": torch.arange(5)})
    assert seen == [2, 5]
    torch.testing.assert_close(shared, apart)


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_gradient_checkpointing_changes_nothing(mode: str) -> None:
    plain = grounding(cam_mode=mode, cam_layer=1).eval()
    vision = {**plain.hparams["vision"], "gradient_checkpointing": True}
    frugal = grounding(cam_mode=mode, cam_layer=1, vision=vision).eval()
    torch.testing.assert_close(frugal.cams(batch([0, 1])), plain.cams(batch([0, 1])))


def test_first_rows() -> None:
    rows, of = first_rows(torch.tensor([7, 3, 7, 9, 3]))
    assert rows.tolist() == [1, 0, 3]
    assert of.tolist() == [1, 0, 1, 2, 0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_the_trainer_evaluates_with_gradients(mode: str, precision: Any) -> None:
    """In the Trainer's inference mode the maps are those of a plain call, and training goes on."""
    module = grounding(cam_mode=mode, cam_layer=1)
    runner = trainer(precision=precision, num_sanity_val_steps=0)
    names = ("images", "image_ids", "indices", "input_ids", "attention_mask")
    steps = [{name: batch([0, 1, 2, 3])[name] for name in names}] * 2
    before = module.itm_head.weight.detach().clone()
    runner.fit(module, given(steps), loader([0, 1, 2], [3, 4]))
    assert {"val/val_d", "val/testA_d", "val/testB_d"} <= runner.callback_metrics.keys()
    assert not torch.equal(before, module.itm_head.weight)

    kept: list[Tensor] = []
    cams = module.cams
    module.cams = lambda batch: kept.append(cams(batch)) or kept[-1]  # type: ignore[method-assign]
    runner.test(module, loader([0, 1, 2]), verbose=False)
    module.eval()  # the Trainer has set it back
    expected = cams(batch([0, 1, 2]))
    loss = 1e-4 if precision == "32-true" else 0.2  # of bfloat16's eight bits
    assert (kept[0] - expected).abs().max() <= loss * expected.abs().max()


def test_accuracies_are_percentages_by_split() -> None:
    module = Perfect(**grounding().hparams)
    # Numbers modulo 3 are val, testA, testB.
    (found,) = trainer().test(module, loader([0, 1], [2, 4, 42], [41]), verbose=False)
    assert found == {"test/val_d": 50, "test/testA_d": 100, "test/testB_d": 50}
    (found,) = trainer().validate(module, loader([0, 3]), verbose=False)
    assert found == {"val/val_d": 100}


def test_repeated_expressions_count_once() -> None:
    module = Perfect(**grounding().hparams)
    (found,) = trainer().test(module, loader([0, 42, 42], [42]), verbose=False)
    assert found == {"test/val_d": 50}


def test_arguments_are_checked_before_training() -> None:
    with pytest.raises(ValueError, match='cam_mode must be "itm" or "itc", got \'both\''):
        grounding(cam_mode="both")
    with pytest.raises(ValueError, match="layer 0 has no cross-attention: layers 1 to 3"):
        grounding(cam_layer=0)
    with pytest.raises(ValueError, match="no block 2: the vision transformer has 2"):
        grounding(cam_mode="itc", cam_layer=2)


def test_hyperparameters_rebuild_the_module() -> None:
    module = grounding(cam_mode="itc", cam_layer=0).eval()
    rebuilt = Grounding(**module.hparams).eval()
    rebuilt.load_state_dict(module.state_dict())
    assert (rebuilt.cam_mode, rebuilt.cam_layer) == ("itc", 0)
    assert torch.equal(rebuilt.cams(batch([0, 1])), module.cams(batch([0, 1])))
    assert rebuilt.predict_step({"images": batch([0])["images"]}, 0).shape == (1, 6)
