"""From instances to batches: resizing, mirroring, padding, and which images are drawn."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_toy import content, federated, read, written
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.detection.module import DetectionData
from shared.data.detection.samples import DetectionSamples, Preparation, Resizing
from shared.data.detection.sampling import (
    LANDSCAPE,
    Plan,
    Share,
    TrainingImages,
    bilevel,
    class_aware,
    class_probabilities,
    episode_draws,
    extra_copies,
    repeat_factor,
    shuffled,
    training_images,
)
from shared.data.errors import DataCorruptError
from shared.data.loading.streams import Draws

KEEP = Resizing([20], 30)  # what the first picture is already
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3, "size_divisor": 8}


def samples(folder: Path, value: Any, resizing: Resizing = KEEP, **about: Any) -> DetectionSamples:
    flip = about.pop("flip", 0.0)
    found = read(folder, value)
    return DetectionSamples(found, np.arange(2), resizing, Preparation(**PLAIN | about), flip)


def drawn(*images: int, passes: int = 0) -> Plan:
    return Plan(Draws(np.array(images), np.full(len(images), passes)), np.array(images) + 1)


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),  # the longer side decides
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_size(size: tuple[int, int], short: int, long: int, expected: tuple[int, int]) -> None:
    resizing = Resizing([short], long)
    assert resizing.size(*size, 0.9) == expected
    assert resizing.size(*size[::-1], 0.9) == expected[::-1]


def test_detectrons_sizes() -> None:
    """As maskrcnn-benchmark's `Resize`: the longer side is rounded down."""
    resizing = Resizing([40], 60, detectron=True)
    assert resizing.size(30, 50, 0.0) == (36, 60)
    assert resizing.size(33, 35, 0.0) == (40, 42)  # 42.4
    assert resizing.size(35, 33, 0.0) == (42, 40)
    assert resizing.size(33, 34, 0.0) == (40, 41)  # 41.2
    assert resizing.size(30, 30, 0.0) == (40, 40)
    assert resizing.size(1, 900, 0.0) == (1, 1)  # never nothing


def test_size_is_drawn() -> None:
    chosen = Resizing([400, 600, 800], 10_000)
    assert [chosen.size(100, 100, draw)[0] for draw in (0, 0.34, 0.99)] == [400, 600, 800]
    between = Resizing([400, 402], 10_000, between=True)
    assert [between.size(100, 100, draw)[0] for draw in (0, 0.34, 0.99)] == [400, 401, 402]


@pytest.mark.parametrize("wrong", [([], False), ([0], False), ([3], True), ([5, 3], True)])
def test_no_sizes(wrong: tuple[list[int], bool]) -> None:
    with pytest.raises(ValueError, match=r"give px|the smaller"):
        Resizing(wrong[0], 100, wrong[1])


def test_evaluation_batch(tmp_path: Path) -> None:
    batch = samples(tmp_path, content(), Resizing([40], 60), masks=True).__getitems__(
        np.array([0, 1])
    )
    assert batch["images"].shape == (2, 3, 64, 64)  # 40 x 60 and 60 x 40, to multiples of 8
    assert batch["sizes"].tolist() == [[40, 60], [60, 40]]
    assert batch["original_sizes"].tolist() == [[20, 30], [24, 16]]
    assert batch["image_ids"].tolist() == [5, 2]
    assert batch["sampled_classes"] is None
    assert batch["images"][0, :, 40:].abs().sum() == batch["images"][0, :, :, 60:].abs().sum() == 0
    first, second = batch["targets"]
    assert first["boxes"].tolist() == [[4, 6, 24, 16], [30, 20, 50, 36]]
    assert first["labels"].tolist() == [2, 1]
    assert first["crowd_boxes"].shape == (0, 4)
    assert second["crowd_boxes"].tolist() == [[0, 30, 40, 60]]
    assert second["masks"].shape == (2, 60, 40)
    ys, xs = first["masks"][1].nonzero(as_tuple=True)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (30, 20, 49, 35)


def test_values_are_normalised(tmp_path: Path) -> None:
    about = {"mean": (5 / 255, 0.0, 0.0), "std": (1 / 255, 2 / 255, 1 / 255)}
    batch = samples(tmp_path, content(), **about).__getitems__(np.array([0]))
    columns = torch.arange(30.0)
    torch.testing.assert_close(batch["images"][0, 0, 0, :30], columns - 5)
    torch.testing.assert_close(batch["images"][0, 1, 19, :30], columns / 2)


def test_mirrored(tmp_path: Path) -> None:
    made = samples(tmp_path, content(), flip=1.0, masks=True)
    batch = made.__getitems__(drawn(0, 1))
    assert batch["sampled_classes"] is not None
    assert batch["sampled_classes"].tolist() == [1, 2]
    torch.testing.assert_close(batch["images"][0, 0, 0, :30], torch.arange(29.0, -1, -1))
    assert batch["targets"][0]["boxes"].tolist() == [[18, 3, 28, 8], [5, 10, 15, 18]]
    ys, xs = batch["targets"][0]["masks"][0].nonzero(as_tuple=True)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (18, 3, 27, 7)


def test_inclusive_corners(tmp_path: Path) -> None:
    plain = samples(tmp_path, content(), inclusive_corners=True).__getitems__(np.array([0]))
    assert plain["targets"][0]["boxes"].tolist() == [[2, 3, 11, 7], [15, 10, 24, 17]]
    mirrored = samples(tmp_path, content(), inclusive_corners=True, flip=1.0).__getitems__(drawn(0))
    assert mirrored["targets"][0]["boxes"].tolist() == [[18, 3, 27, 7], [5, 10, 14, 17]]


def test_an_image_is_changed_by_its_pass_and_not_by_its_neighbours(tmp_path: Path) -> None:
    made = samples(tmp_path, content(), Resizing([16, 64], 64, between=True), flip=0.5)
    alone, beside = made.__getitems__(drawn(1)), made.__getitems__(drawn(0, 1))
    assert alone["sizes"][0].tolist() == beside["sizes"][1].tolist()
    assert torch.equal(alone["targets"][0]["boxes"], beside["targets"][1]["boxes"])
    sizes = {
        tuple(made.__getitems__(drawn(1, passes=number))["sizes"][0].tolist())
        for number in range(9)
    }
    assert len(sizes) > 4


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    made = samples(tmp_path, content())
    (tmp_path / "5.png").write_bytes((tmp_path / "2.png").read_bytes())
    with pytest.raises(DataCorruptError, match=r"5.png: height and width \(24, 16\), but .*20, 30"):
        made.__getitems__(np.array([0]))


def test_an_object_without_a_mask_is_refused_where_masks_are_asked_for(tmp_path: Path) -> None:
    value = content()
    del value["annotations"][0]["segmentation"]
    assert samples(tmp_path, value).__getitems__(np.array([0]))["targets"][0][
        "labels"
    ].tolist() == [
        2,
        1,
    ]
    with pytest.raises(DataCorruptError, match="annotation 1 has no segmentation"):
        samples(tmp_path, value, masks=True).__getitems__(np.array([0]))


def of_classes(*lists: list[int], count: int = 20) -> TrainingImages:
    members = [np.array(images, np.int64) for images in lists]
    counts = np.array([2 * len(images) for images in lists])
    return TrainingImages(np.arange(count), members, counts, np.arange(count) % 3 // 2)


TAIL = of_classes(list(range(19)), [], [3, 7], [19])


def test_training_images_have_something_to_learn(tmp_path: Path) -> None:
    value = federated()
    value["annotations"][0]["area"] = value["annotations"][2]["area"] = 0
    found = training_images(read(tmp_path, value), smallest_side=16)
    assert found.members.tolist() == [1]
    assert [own.tolist() for own in found.of_class] == [[0], [0], []]
    assert found.instance_counts.tolist() == [2, 3, 0]
    assert found.groups.tolist() == [0]
    with pytest.raises(ValueError, match="no image has an object"):
        training_images(read(tmp_path, value), smallest_side=17)


def test_landscapes(tmp_path: Path) -> None:
    found = training_images(read(tmp_path, content()), smallest_side=1)
    assert found.groups.tolist() == [LANDSCAPE, 0]
    assert [own.tolist() for own in found.of_class] == [[0], [0, 1]]  # no crowd


@pytest.mark.parametrize("grouped", [True, False])
def test_shuffled_epochs(grouped: bool) -> None:
    schedule = shuffled(TAIL, Share(4, seed=3), grouped)
    epochs = [list(schedule.batches(epoch)) for epoch in (0, 1)]
    assert {len(batches) for batches in epochs} == {len(schedule)}
    for batches in epochs:
        positions = [plan.draws.positions for plan in batches]
        assert set(np.concatenate(positions)) == set(range(20))
        assert {len(batch) for batch in positions} == {4}
        groups = [set(TAIL.groups[batch]) for batch in positions]
        assert all(len(group) == 1 for group in groups) == grouped
    first, second = ([p.draws.positions.tolist() for p in batches] for batches in epochs)
    assert first != second
    resumed = [plan.draws.positions.tolist() for plan in schedule.batches(1, start=2)]
    assert resumed == second[2:]


def test_extra_copies() -> None:
    lists = [np.arange(100), np.array([5]), np.array([5, 6, 7, 8]), np.array([], np.int64)]
    copies = extra_copies(lists, 100, threshold=0.09)
    # sqrt(0.09 / 0.01) = 3 and sqrt(0.09 / 0.04) = 1.5, rounded up; the rarest class decides
    assert {number: copies[number] for number in (5, 6, 7, 8, 9)} == {5: 3, 6: 2, 7: 2, 8: 2, 9: 0}
    assert copies.sum() == 9


def test_repeat_factor_epochs() -> None:
    schedule = repeat_factor(TAIL, Share(1, seed=0), threshold=0.2, aspect_groups=False)
    plans = [(int(d.positions[0]), int(d.passes[0])) for d, _ in schedule.batches(1)]
    times = Counter(position for position, _ in plans)
    assert (times[19], times[3], times[0]) == (3, 3, 1)
    assert len(set(plans)) == len(plans)  # each time augmented in another way


def test_class_aware_epochs() -> None:
    schedule = class_aware(TAIL, Share(6, seed=0), steps_per_epoch=5)
    positions = np.concatenate([plan.draws.positions for plan in schedule.batches(0)])
    assert len(schedule) == 5
    assert np.sum(positions == 19) == 10  # a third of the draws, though one of 20 images


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_episodes_show_the_class_that_they_are_drawn_for(nc: int, k: int, epoch: int) -> None:
    schedule = bilevel(TAIL, Share(nc * k, seed=1), images_per_class=k, steps_per_epoch=7)
    plans = list(schedule.batches(epoch))
    assert len(plans) == len(schedule) == 7
    for draws, classes in plans:
        assert classes is not None
        assert (classes.reshape(nc, k) == classes.reshape(nc, k)[:, :1]).all()
        for position, label in zip(draws.positions, classes, strict=True):
            assert position in TAIL.of_class[label - 1]


def test_classes_are_drawn_evenly() -> None:
    schedule = bilevel(TAIL, Share(16, seed=0), steps_per_epoch=300)
    labels = np.concatenate([plan.classes for plan in schedule.batches(0)])
    shares = np.bincount(labels, minlength=5)[1:] / len(labels)
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)


def test_class_probabilities() -> None:
    counts = np.array([400, 0, 25])
    np.testing.assert_allclose(class_probabilities(counts, 0.0, 100), [0.5, 0, 0.5])
    np.testing.assert_allclose(class_probabilities(counts, 0.5, 100), [2 / 3, 0, 1 / 3])


def test_the_last_uniform_number_draws_the_last_class_and_image() -> None:
    almost = np.full((1, 1), np.nextafter(1, 0))
    chances = class_probabilities(np.array([1, 1, 1, 0]), 0.3, 100)
    lists = [np.array([0]), np.array([1]), np.array([2, 3, 4]), np.array([], np.int64)]
    images, classes = episode_draws(lists, chances, almost, almost[..., None])
    assert (images.tolist(), classes.tolist()) == ([[4]], [[2]])


def test_two_processes_draw_what_one_does() -> None:
    for schedule in (
        lambda share: bilevel(TAIL, share, images_per_class=2, steps_per_epoch=4),
        lambda share: shuffled(TAIL, share),
        lambda share: repeat_factor(TAIL, share),
        lambda share: class_aware(TAIL, share, steps_per_epoch=3),
    ):
        whole = list(schedule(Share(8, seed=5)).batches(2))
        parts = [list(schedule(Share(8, 5, rank, 2)).batches(2)) for rank in (0, 1)]
        for one, *both in zip(whole, *parts, strict=True):
            for field in ("positions", "passes"):
                joined = np.concatenate([getattr(plan.draws, field) for plan in both])
                assert joined.tolist() == getattr(one.draws, field).tolist()
            if one.classes is not None:
                assert np.concatenate([p.classes for p in both]).tolist() == one.classes.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Share(5, 0, 0, 2), "can't be shared by 2 ranks evenly"),
        (lambda: Share(0, 0), "can't be shared"),
        (lambda: bilevel(TAIL, Share(5, 0), images_per_class=2), "images_per_class=2"),
        (lambda: class_aware(of_classes([]), Share(2, 0), 3), "no class to draw from"),
    ],
)
def test_refused_shares(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def module(folder: Path, sampling: str = "shuffled", **more: Any) -> DetectionData:
    file, splits = str(written(folder, content())), ("train", "val", "test")
    return DetectionData(
        files=dict.fromkeys(splits, file),
        image_roots=dict.fromkeys(splits, str(folder)),
        resizing={"short": [20], "long": 30},
        eval_resizing={"short": [20], "long": 30},
        preparation=PLAIN,
        sampling={"_target_": f"shared.data.detection.sampling.{sampling}", **more},
        flip=0.5,
        batch_size=2,
        eval_batch_size=1,
        smallest_side=1,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_module_continues_where_it_stopped(tmp_path: Path, workers: int) -> None:
    data = module(tmp_path, "bilevel", steps_per_epoch=4)
    data.hparams["num_workers"] = workers
    data.setup("fit")
    whole = data.train_dataloader()
    whole.set_epoch(1)
    batches = list(whole)
    assert len(batches) == 4
    half = data.train_dataloader()
    half.set_epoch(1)
    iterator = iter(half)
    next(iterator), next(iterator)
    resumed = data.train_dataloader()
    resumed.load_state_dict(half.state_dict())
    for expected, batch in zip(batches[2:], resumed, strict=True):
        assert torch.equal(expected["images"], batch["images"])
        assert expected["sampled_classes"].tolist() == batch["sampled_classes"].tolist()


def test_a_data_module_says_what_there_is(tmp_path: Path) -> None:
    data = module(tmp_path)
    assert data.class_names == ("dog", "cup")
    assert data.instance_counts.tolist() == [2, 3]
    assert [batch["image_ids"].tolist() for batch in data.val_dataloader()] == [[5], [2]]
    with pytest.raises(ValueError, match="no split 'minival'"):
        data.instances("minival")
    with pytest.raises(ValueError, match="unexpected keyword argument 'aspects'"):
        module(tmp_path, aspects=True).train_dataloader()
