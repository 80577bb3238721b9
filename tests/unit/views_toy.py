"""Views of one size, by few operations, for the tests of data sets with texts."""

from typing import Any


def plain_views(size: int, mean: float, std: float, *train: dict[str, Any]) -> dict[str, Any]:
    """The `augmentation` of a data set; `train` are the operations of training."""
    return {
        "_target_": "shared.data.views.recipes.RecipeViews",
        "mean": [mean] * 3,
        "std": [std] * 3,
        "size": size,
        "test_resize": None,
        "recipes": {"train": list(train)},
    }
