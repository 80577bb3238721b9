"""From what a system returns to NDCG@10 over functions.

A hit is what a user sees at one position of a ranking: a function, a chunk of a file that may hold
several functions or a part of one, or one text that stands in several places. It is turned into
the labelled functions that any of its lines belongs to, the highest grade first, less those that
an earlier hit has shown. So several chunks of one function count once: a later one takes no
position. Neither does a chunk lose by holding unlabelled functions besides. A hit without any
labelled function takes one position. All three choices favour chunks over functions.
"""

from collections.abc import Sequence
from math import log2

from benchmarks.search.repository import Label, Question

DEPTH = 10

Span = tuple[str, int, int]
"""Path in the repository, first and last line, both inclusive."""
Hit = Sequence[Span]


def grades(hits: Sequence[Hit], question: Question) -> list[int]:
    """Grade of each position of the ranking that the hits stand for; 0 for other functions."""
    seen: set[Label] = set()
    ranking = []
    for hit in hits:
        shown = [label for label in question.labels if _touches(hit, label)]
        new = [label for label in shown if label not in seen]
        seen.update(new)
        if new:
            ranking += sorted((label.grade for label in new), reverse=True)
        elif not shown:
            ranking.append(0)
    return ranking


def ndcg(ranking: Sequence[int], question: Question, depth: int = DEPTH) -> float:
    """Normalised discounted cumulative gain of the first `depth` positions, from 0 to 1.

    Gain 2^grade - 1, discount log2(position + 1); 1 is what the best order of all labels gets.
    """

    def gain(found: Sequence[int]) -> float:
        return sum((2**grade - 1) / log2(place + 2) for place, grade in enumerate(found[:depth]))

    ideal = sorted((label.grade for label in question.labels), reverse=True)
    return gain(ranking) / gain(ideal)


def hit_at_1(ranking: Sequence[int]) -> bool:
    """Whether a function that does what is asked comes first."""
    return bool(ranking) and ranking[0] == 2


def _touches(hit: Hit, label: Label) -> bool:
    return any(
        path == label.path and start <= last and first <= end
        for path, start, end in hit
        for first, last in label.lines
    )
