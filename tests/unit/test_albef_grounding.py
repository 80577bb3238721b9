"""ALBEF's grounding: maps of expressions under the Trainer, and what is counted of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.albef.grounding import GroundingEvaluation
from methods.albef.retrieval import Retrieval
from shared import distributed
from shared.evaluation.features import first_rows
from tests.unit.albef_toy import TEXT, VISION, given, retrieval, trainer

BOXES = torch.tensor([[0.0, 0, 16, 16], [16, 0, 16, 16], [0, 16, 16, 16], [16, 16, 16, 16]])
MODES = pytest.mark.parametrize("mode", ["itm", "itc"])


def grounding(mode: str = "itm", layer: int = 1, **changes: Any) -> Retrieval:
    vision = VISION | {"depth": 2, "patch_size": 4}
    sizes = {"vision": vision, "text": TEXT | {"num_layers": 4}}
    return retrieval(**sizes | {"cam_mode": mode, "cam_layer": layer} | changes)


def cams(module: Any, data: dict[str, Any]) -> Tensor:
    return module.evaluation.cams(module, data)


def expressions(numbers: list[int], images: int = 3) -> dict[str, Any]:
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


class Perfect(GroundingEvaluation):
    """Looks where it should, but for expressions from number 40 on."""

    def cams(self, module: Any, batch: Any) -> Tensor:
        numbers = batch["indices"]
        hot = (numbers + (numbers >= 40)) % 4
        return torch.nn.functional.one_hot(hot, 4).float().view(-1, 2, 2)


@MODES
def test_a_map_depends_neither_on_the_batch_nor_on_gradient_checkpointing(mode: str) -> None:
    module = grounding(mode).eval()
    whole = cams(module, expressions([0, 1, 2, 3, 4]))
    assert whole.shape == (5, 4, 4)
    assert (whole.flatten(1).amax(1) > 0).all()
    for number in range(5):
        torch.testing.assert_close(cams(module, expressions([number]))[0], whole[number])
    vision = {**module.hparams["vision"], "gradient_checkpointing": True}
    frugal = grounding(mode, vision=vision).eval()
    torch.testing.assert_close(cams(frugal, expressions([0, 1, 2, 3, 4])), whole)


def test_images_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = grounding().eval()
    seen: list[int] = []
    encode = module.encoders.encode_image
    monkeypatch.setattr(
        module.encoders, "encode_image", lambda images: seen.append(len(images)) or encode(images)
    )
    numbers = [0, 3, 1, 6, 4]
    shared = cams(module, expressions(numbers))
    apart = cams(module, expressions(numbers) | {"image_ids": torch.arange(5)})
    assert seen == [2, 5]
    torch.testing.assert_close(shared, apart)


def test_first_rows() -> None:
    rows, of = first_rows(torch.tensor([7, 3, 7, 9, 3]))
    assert rows.tolist() == [1, 0, 3]
    assert of.tolist() == [1, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("mode", "precision"), [("itm", "32-true"), ("itc", "32-true"), ("itm", "bf16-mixed")]
)
def test_the_trainer_evaluates_with_gradients(mode: str, precision: Any) -> None:
    """In the Trainer's inference mode the maps are those of a plain call, and training goes on."""
    module: Any = grounding(mode)
    runner = trainer(precision=precision, inference_mode=True)
    names = ("images", "image_ids", "indices", "input_ids", "attention_mask")
    steps = [{name: expressions([0, 1, 2, 3])[name] for name in names}] * 2
    before = module.matching.head.weight.detach().clone()
    runner.fit(module, given(steps), given([expressions([0, 1, 2]), expressions([3, 4])]))
    assert {"val/val_d", "val/testA_d", "val/testB_d"} <= runner.callback_metrics.keys()
    assert not torch.equal(before, module.matching.head.weight)

    kept: list[Tensor] = []
    of = module.evaluation.cams
    module.evaluation.cams = lambda *pair: kept.append(of(*pair)) or kept[-1]
    runner.test(module, given([expressions([0, 1, 2])]), verbose=False)
    module.eval()  # the Trainer has set it back
    expected = of(module, expressions([0, 1, 2]))
    loss = 1e-4 if precision == "32-true" else 0.2  # of bfloat16's eight bits
    assert (kept[0] - expected).abs().max() <= loss * expected.abs().max()


def test_accuracies_are_percentages_by_split_and_repeated_expressions_count_once() -> None:
    module = grounding()
    module.evaluation = Perfect("itm", 1)
    # Numbers modulo 3 are val, testA, testB.
    batches = [expressions(numbers) for numbers in ([0, 1], [2, 4, 42, 42], [41, 42])]
    (found,) = trainer().test(module, given(batches), verbose=False)
    assert found == {"test/val_d": 50, "test/testA_d": 100, "test/testB_d": 50}
    (found,) = trainer().validate(module, given([expressions([0, 3])]), verbose=False)
    assert found == {"val/val_d": 100}


def test_expressions_of_all_ranks_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {1: ("val", 1.0), 3: ("testA", 0.0), 2: ("val", 0.5)}

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = [mine, other]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    evaluation = GroundingEvaluation("itm", 1)
    evaluation.seen = {0: ("val", 0.49), 2: ("val", 0.5)}
    found = evaluation.metrics(None, testing=True)
    assert found == {"val_d": pytest.approx(200 / 3), "testA_d": 0.0}
    assert evaluation.seen == {}


def test_arguments_are_checked_before_training() -> None:
    for arguments, message in [
        (("both", 1), 'cam_mode must be "itm" or "itc", got \'both\''),
        (("itm", 0), "layer 0 has no cross-attention: layers 1 to 3"),
        (("itc", 2), "no block 2: the vision transformer has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            grounding(*arguments)
