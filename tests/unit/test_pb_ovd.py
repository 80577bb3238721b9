"""PB-OVD's detector: classes are texts, and files say which."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F

from methods.pb_ovd.controls import ShuffledTexts, UnitTexts
from methods.pb_ovd.data import OpenVocabularyData, read_vocabulary, restricted
from methods.pb_ovd.losses import text_logits, weighted_cross_entropy
from methods.pb_ovd.module import Ramp, measured
from methods.pb_ovd.network import ResNetC4
from methods.pb_ovd.prompts import TEMPLATES, prompts
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.instances import read_instances
from shared.evaluation.detection import DetectionScores, detection_scores
from tests.unit.detection_toy import content, federated, written
from tests.unit.pb_ovd_toy import CLASSES, DIM, described, detector, texts
from tests.unit.simcal_toy import scenes
from tests.unit.test_evaluation_detection import only, ours, random_set

# --- losses -------------------------------------------------------------------------------------


def test_the_background_has_logit_0_and_texts_are_not_normalised() -> None:
    regions, names = torch.randn(5, DIM), texts(3)
    logits = text_logits(regions, names)
    assert (logits[:, 0] == 0).all()
    torch.testing.assert_close(text_logits(regions, 2 * names), 2 * logits)


def test_the_loss_is_a_mean_over_regions_and_not_over_weights() -> None:
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 0, 0, 2])
    loss = weighted_cross_entropy(logits, labels, 0.2)
    torch.testing.assert_close(loss, torch.tensor(3.0).log() * (3 * 0.2 + 1) / 4)
    assert weighted_cross_entropy(logits[:0], labels[:0], 0.2) == 0


# --- module -------------------------------------------------------------------------------------


def test_a_step_learns_and_the_texts_stay() -> None:
    module = detector()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(25):
        loss = module.training_step(scenes(6, step % 5), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert torch.equal(module.texts, texts(CLASSES))


def test_other_texts_ask_for_other_classes() -> None:
    module, batch = detector(selection={"threshold": 0.0, "nms": 0.5, "limit": 8}).eval(), scenes(2)
    names = texts(9)
    assert module.detect(batch, names).labels.max() > CLASSES
    swapped = names[[0, 2, 1, *range(3, 10)]]
    there, here = module.detect(batch, swapped), module.detect(batch, names)
    exchanged = torch.arange(10)[[0, 2, 1, *range(3, 10)]]
    torch.testing.assert_close(there.scores, here.scores)
    assert torch.equal(exchanged[there.labels], here.labels)


def test_boxes_are_those_of_the_file() -> None:
    module, batch = detector().eval(), scenes(2)
    given = module.detect(batch, module.texts)
    larger = module.detect({**batch, "original_sizes": 2 * batch["sizes"]}, module.texts)
    torch.testing.assert_close(larger.boxes, 2 * given.boxes)
    assert torch.equal(larger.scores, given.scores)


def test_biases_learn_at_twice_the_rate_and_a_frozen_embedding_not_at_all() -> None:
    module = detector(freeze_embedding=True)
    (optimizer,), (scheduler,) = module.configure_optimizers()
    weights, biases = optimizer.param_groups
    assert weights["weight_decay"] == 1e-4
    assert biases["weight_decay"] == 0
    assert biases["lr"] == 2 * weights["lr"] == 2 * 0.01 * 0.25
    assert scheduler["interval"] == "step"
    learnt = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in module.named_parameters() if id(p) in learnt}
    assert "detector.box_heads.0.trunk.0.conv1.weight" in names
    assert not any("emb_pred" in n or "backbone.conv1" in n or "layer1" in n for n in names)
    assert {id(p) for n, p in module.named_parameters() if "bias" in n} & learnt == {
        id(p) for p in biases["params"]
    }


def test_the_rate_rises_and_falls() -> None:
    ramp = Ramp(warm_up=4, start=0.25, milestones=[6, 8], gamma=0.1)
    factors = [ramp.factor(step) for step in (0, 2, 4, 5, 6, 8)]
    assert factors == pytest.approx([0.25, 0.625, 1.0, 1.0, 0.1, 0.01])
    assert Ramp(0, 0.25, [], 0.1).factor(0) == 1


class Texts:
    """Stands in for a data module."""

    def texts(self, split: str) -> torch.Tensor:
        return texts(CLASSES + 1)


def test_other_training_classes_than_configured_are_refused() -> None:
    with pytest.raises(ValueError, match="5 classes, their embeddings 6 numbers: set method"):
        detector().attach(Texts())


class OwnTexts(Texts):
    def texts(self, split: str) -> torch.Tensor:
        return texts(CLASSES)


def test_controls() -> None:
    shuffled, unit = detector(ShuffledTexts), detector(UnitTexts)
    for module in (shuffled, unit):
        module.attach(OwnTexts())
    own = texts(CLASSES)
    assert torch.equal(shuffled.texts, own[[0, 4, 1, 2, 3]])
    torch.testing.assert_close(unit.texts, F.normalize(own, dim=1))
    batch = scenes(2)
    seen = unit.eval().detect(batch, 7 * own)
    assert torch.equal(seen.scores, unit.detect(batch, own).scores)


def test_the_metrics_of_base_and_novel_classes() -> None:
    per_class = np.array([0.2, np.nan, 0.6, 0.9])
    scores = DetectionScores({"AP": 0.5, "APl": -1.0, "AR@1": 0.3}, per_class, per_class)
    values = measured(scores, np.array(["seen", "seen", "seen", "unseen"]))
    assert values == pytest.approx({"AP": 50, "AP50_base": 40, "AP50_novel": 90})
    assert "AP50_novel" not in measured(scores, np.array(["", "unseen", "", ""]))


@pytest.mark.parametrize("seed", range(4))
def test_base_and_novel_are_what_pycocotools_says_of_subsets(tmp_path: Path, seed: int) -> None:
    truth, results = random_set(seed, lvis=False)
    scores = detection_scores(*ours(tmp_path, truth, results))
    with redirect_stdout(StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluator = COCOeval(coco, coco.loadRes(only(results, "bbox")), "bbox")
    numbers = np.array(sorted(coco.getCatIds()))
    splits = np.where(np.arange(len(numbers)) % 2, "unseen", "seen")
    values = measured(scores, splits)
    for split, name in (("seen", "AP50_base"), ("unseen", "AP50_novel"), (None, "AP50")):
        evaluator.params.catIds = numbers[(splits == split) | (split is None)].tolist()
        with redirect_stdout(StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        found = values.get(name, -100.0)  # -1: nothing of these classes is annotated
        assert found == pytest.approx(100 * evaluator.stats[1], abs=1e-9)
    assert values["AP50"] > 0


# --- network ------------------------------------------------------------------------------------


def test_c4_has_stride_16_and_halves_in_the_first_convolution() -> None:
    network = ResNetC4(stem=8, outputs=8, width=4, blocks=[1, 2, 1], frozen_stages=2)
    (maps,) = network(torch.zeros(1, 3, 50, 66)).values()
    assert maps.shape == (1, 32, 4, 5)  # rounded up
    assert network.layer2[0].conv1.stride == (2, 2)
    assert network.layer2[0].conv2.stride == (1, 1)
    frozen = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    all_learn = ResNetC4(stem=8, outputs=8, width=4, blocks=[1, 1, 1], frozen_stages=0)
    assert all(p.requires_grad for p in all_learn.parameters())


# --- data ---------------------------------------------------------------------------------------


def data(path: Path, embeddings: str | None = None, **more: Any) -> OpenVocabularyData:
    splits = ("train", "val", "test")
    preparation = {"mean": [0.5] * 3, "std": [0.25] * 3, "inclusive_corners": True}
    given: dict[str, Any] = {
        "files": dict.fromkeys(splits, str(path)),
        "image_roots": dict.fromkeys(splits, str(path.parent)),
        "resizing": {"short": [16], "long": 64}, "eval_resizing": {"short": [16], "long": 64},
        "preparation": preparation,
        "sampling": {"_target_": "shared.data.detection.sampling.shuffled"},
        "flip": 0.0, "batch_size": 1, "eval_batch_size": 2, "smallest_side": 1,
    }  # fmt: skip
    return OpenVocabularyData(embeddings, **{**given, **more})


def test_texts_follow_the_labels(tmp_path: Path) -> None:
    module = data(written(tmp_path, described()))
    assert module.class_names == ("dog", "cup")  # ids 3 and 7
    assert module.texts("train").tolist() == [[0, 0], [3, 4], [1, 2]]
    assert module.class_splits("val").tolist() == ["unseen", "seen"]


def test_a_file_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"cup": [5.0], "owl": [6.0]}))
    module = data(written(tmp_path, content()), str(path))
    assert module.class_names == ("cup",)  # dog has no text
    assert module.texts("val").tolist() == [[0], [5]]
    instances = module.instances("val")
    assert instances.ids.tolist() == [1, 2, 4]
    assert instances.labels.tolist() == [1, 1, 1]
    batch = next(iter(module.val_dataloader()))
    assert [len(target["labels"]) for target in batch["targets"]] == [1, 2]


def test_classes_without_a_text_go_with_their_images(tmp_path: Path) -> None:
    value = federated()
    value["images"][1] |= {"neg_category_ids": [9, 3], "not_exhaustive_category_ids": [3]}
    instances = read_instances(written(tmp_path, value), tmp_path)
    dogs = restricted(instances, np.array([True, False, True]), training=False)
    assert dogs.class_names == ("dog", "owl")
    assert dogs.image_ids.tolist() == [5, 2]
    assert dogs.negative is not None
    assert dogs.not_exhaustive is not None
    assert dogs.negative[1].tolist() == [2, 1]  # owl and dog
    assert [dogs.not_exhaustive[image].tolist() for image in (0, 1)] == [[], [1]]
    assert dogs.frequencies == "cr"
    cups = restricted(instances, np.array([False, True, False]), training=True)
    assert cups.ids.tolist() == [1, 4]  # one is a pixel wide
    assert cups.of_image(1) == slice(1, 2)


def test_an_image_of_slivers_is_left_out(tmp_path: Path) -> None:
    value = described()
    value["annotations"] = [value["annotations"][1], value["annotations"][2]]
    assert data(written(tmp_path, value)).instances("test").image_ids.tolist() == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": {"ClipEmb": [1.0, "2"]}}, "cup: embedding is .* expected numbers"),
        ({"embedding": {"ClipEmb": []}}, "cup: embedding is .*, expected numbers"),
        ({"embedding": {"ClipEmb": [1.0, float("inf")]}}, "no JSON|expected numbers"),
        ({"embedding": {"ClipEmb": [1.0, 1e300]}}, "expected numbers"),
        ({"embedding": {"ClipEmb": [1.0]}}, "embeddings of 1 and of 2 numbers"),
        ({"embedding": [1.0]}, "embeddings of 1 and|cup: embedding"),
        ({"split": "novel"}, "split of cup is 'novel', expected seen or unseen"),
    ],
)
def test_wrong_texts_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    value = described()
    value["categories"][0] |= change
    with pytest.raises(DataCorruptError, match=message):
        data(written(tmp_path, value)).texts("train")


def test_what_has_no_texts_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, content())
    with pytest.raises(DataCorruptError, match=r"no class has .*data\.embeddings=FILE"):
        data(path).setup("fit")
    with pytest.raises(DataNotFoundError, match=r"nothing\.json not found"):
        read_vocabulary(read_instances(path), str(tmp_path / "nothing.json"))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataCorruptError, match="expected a JSON object from names to lists"):
        read_vocabulary(read_instances(path), str(tmp_path / "list.json"))
    with pytest.raises(ValueError, match="boxes alone are detected"):
        data(path, preparation={"mean": [0.5] * 3, "std": [0.25] * 3, "masks": True})


def test_there_are_63_prompts() -> None:
    assert len(set(TEMPLATES)) == 63
    assert prompts("Hot_Dog")[0] == "There is a hot dog in the scene."
    assert sum(not text.endswith(".") for text in prompts("dog")) == 1
