"""`tenfold predict`: one file a kind of answer."""

from collections.abc import Set

USAGE = (
    "tenfold predict checkpoint=FILE images=DIR|videos=DIR [output=DIR] [texts=FILE] "
    "[questions=FILE] [frames=N] [min_score=S] [official=EXPERIMENT] [batch_size=N] [device=cuda]"
)


def missing(given: Set[str]) -> str:
    """What the keys that are given lack, for a message; empty if nothing."""
    lacking = [] if "checkpoint" in given else ["checkpoint"]
    return " and ".join(lacking + ([] if given & {"images", "videos"} else ["images or videos"]))
