"""Metrics of captions: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE.

BLEU, ROUGE-L and CIDEr are computed here, and are those of the package pycocoevalcap on the same
words. What is a Java program there is called there: METEOR, SPICE, and the Penn Treebank tokeniser
that published numbers are made with. `pip install 'tenfold[captions]'` gives the package; SPICE
needs Stanford CoreNLP 3.6.0 beside it. All metrics are in percent, i.e. 100 times what
pycocoevalcap prints.

What pycocoevalcap calls CIDEr is CIDEr-D. Source: docs/papers/blip.md, section 7.3;
salesforce/BLIP@056a169 `data/utils.py:coco_caption_eval`.
"""

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from shared.data.readers.files import one_line

ORDERS = range(1, 5)  # lengths of n-grams
SIGMA = 6.0  # words, of CIDEr-D's penalty for another length
BETA = 1.2  # weight of recall in ROUGE-L
PACKAGE = "pycocoevalcap"
JAVA_METRICS = {"meteor": "Meteor", "spice": "Spice"}  # name -> class of the package
PTB = "PTB tokeniser"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_FAILURES = (OSError, ValueError, subprocess.SubprocessError)  # in which a Java program ends
_PLAIN_WORD = re.compile(r"\w+(?:-\w+)*|'\w+")

NGrams = Counter[tuple[str, ...]]
Words = Mapping[int, Sequence[str]]  # id -> texts of words between single spaces


@dataclass
class CaptionScores:
    """Metrics by name, in percent; which `tokenizer` made the words ("ptb", or "plain", whose
    numbers must not stand beside published ones); and what is missing, with what it needs."""

    metrics: dict[str, float]
    tokenizer: str
    missing: dict[str, str] = field(default_factory=dict)


def caption_scores(
    captions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    domains: Mapping[int, str] = MappingProxyType({}),
    tokenizer: Literal["ptb", "plain"] = "ptb",
) -> CaptionScores:
    """Score one caption an image, image id -> text, by its references; both have the same ids.

    With `domains`, image id -> name, each domain is also scored as a set of its own, as
    `<metric>_<name>`. "plain" needs neither Java nor a package and leaves METEOR and SPICE out; see
    `plain_words`. Where "ptb" lacks something, the words are plain and what is missing is named.
    """
    _check_ids(captions, references)
    order = sorted(references)
    single = {number: [captions[number]] for number in order}
    several = {number: references[number] for number in order}
    missing = {} if tokenizer == "plain" else _missing()
    candidates, truth, used = plain_words(single), plain_words(several), "plain"
    if tokenizer == "ptb" and PTB not in missing:
        try:
            candidates, truth, used = _ptb_words(single), _ptb_words(several), "ptb"
        except _FAILURES as error:
            missing = dict.fromkeys((PTB, *JAVA_METRICS), _failure(error))
    groups = {"": order}
    for number in order if domains else ():
        if number not in domains:
            raise ValueError(f"image {number} has no domain, others have")
        slug = re.sub(r"\W+", "_", domains[number].lower()).strip("_")
        groups.setdefault(f"_{slug}", []).append(number)
    metrics: dict[str, float] = {}
    for suffix, ids in groups.items():
        own = {number: candidates[number] for number in ids}, {n: truth[n] for n in ids}
        found = {**bleu(*own), "rouge_l": rouge_l(*own), "cider": cider(*own)}
        for name in JAVA_METRICS if used == "ptb" else ():
            if name not in missing:
                try:
                    found[name] = _java_metric(name, *own)
                except _FAILURES as error:
                    missing[name] = _failure(error)
        metrics |= {f"{name}{suffix}": 100 * value for name, value in found.items()}
    return CaptionScores(metrics, used, missing)


def plain_words(texts: Mapping[int, Iterable[str]]) -> dict[int, list[str]]:
    """Texts in lower case, of which stay words of letters, digits and inner hyphens, and what
    follows an apostrophe, as words of their own. The Penn Treebank's rules differ in "don't", in
    numbers and abbreviations; captions of plain words are the same."""
    return {n: [" ".join(_PLAIN_WORD.findall(t.lower())) for t in own] for n, own in texts.items()}


# --- metrics ---


def bleu(candidates: Words, references: Words) -> dict[str, float]:
    """`bleu_1` to `bleu_4` of the whole set; the reference whose length is nearest counts."""
    right: Counter[int] = Counter()  # n-grams of each length
    total: Counter[int] = Counter()
    length = wanted = 0
    for number, (candidate,) in candidates.items():
        texts = [text.split() for text in references[number]]
        own = candidate.split()
        length += len(own)
        wanted += min((abs(len(text) - len(own)), len(text)) for text in texts)[1]
        most: NGrams = Counter()
        for text in texts:
            most |= _ngrams(text)
        grams = _ngrams(own)
        for counts, seen in ((right, grams & most), (total, grams)):
            for gram, count in seen.items():
                counts[len(gram)] += count
    # The tiny numbers keep pycocoevalcap's value where nothing is right or nothing is said.
    ratio = (length + 1e-15) / (wanted + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, {}
    for n in ORDERS:
        product *= (right[n] + 1e-15) / (total[n] + 1e-9)
        scores[f"bleu_{n}"] = penalty * product ** (1 / n)
    return scores


def rouge_l(candidates: Words, references: Words) -> float:
    """The mean over images of the F-measure of the longest common subsequence; precision and recall
    are each the best of the references'."""
    scores = []
    for number, (candidate,) in candidates.items():
        own = candidate.split(" ")
        precision = recall = 0.0
        for text in references[number]:
            words = text.split(" ")
            common = _common(own, words)
            precision, recall = max(precision, common / len(own)), max(recall, common / len(words))
        weighted = (1 + BETA**2) * precision * recall
        scores.append(weighted / (recall + BETA**2 * precision) if weighted else 0.0)
    return math.fsum(scores) / len(scores)


def cider(candidates: Words, references: Words) -> float:
    """CIDEr-D, the mean over images; 0 for a set of one image, in which no word is rare."""
    cooked = {n: [_ngrams(text.split()) for text in texts] for n, texts in references.items()}
    frequency: NGrams = Counter()
    for rows in cooked.values():
        frequency.update(set().union(*rows))
    images = math.log(len(cooked))
    rarity = {gram: images - math.log(count) for gram, count in frequency.items()}

    def vectors(grams: NGrams) -> list[dict[tuple[str, ...], float]]:
        """Of each length of n-grams: their weights by frequency here and rarity elsewhere."""
        found: list[dict[tuple[str, ...], float]] = [{} for _ in ORDERS]
        for gram, count in grams.items():
            found[len(gram) - 1][gram] = count * rarity.get(gram, images)
        return found

    scores = []
    for number, (candidate,) in candidates.items():
        own_words = candidate.split()
        own, score = vectors(_ngrams(own_words)), 0.0
        for text, grams in zip(references[number], cooked[number], strict=True):
            distance = max(len(own_words) - 1, 0) - max(len(text.split()) - 1, 0)
            penalty = math.exp(-(distance**2) / (2 * SIGMA**2))
            score += penalty * sum(map(_similarity, own, vectors(grams)))
        scores.append(10 * score / len(ORDERS) / len(cooked[number]))
    return math.fsum(scores) / len(scores)


def _similarity(own: Mapping[Any, float], other: Mapping[Any, float]) -> float:
    """The cosine of two vectors, of which the first is cut to what the second has."""
    shared = own.keys() & other.keys()
    product = math.fsum(min(own[gram], other[gram]) * other[gram] for gram in shared)
    norms = math.hypot(*own.values()) * math.hypot(*other.values())
    return product / norms if norms else product


def _ngrams(words: Sequence[str]) -> NGrams:
    """How often each run of one to four words occurs."""
    runs = (zip(*(words[place:] for place in range(n)), strict=False) for n in ORDERS)
    return Counter(chain.from_iterable(runs))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, word_there in enumerate(other, 1):
            above = row[place]
            row[place] = before + 1 if word == word_there else max(above, row[place - 1])
            before = above
    return row[-1]


# --- what Java computes ---


def _missing() -> dict[str, str]:
    """What can't be computed here -> what it needs."""
    package = "pip install 'tenfold[captions]'" if find_spec(PACKAGE) is None else None
    java = None if shutil.which("java") else "a Java runtime (Debian: apt-get install default-jre)"
    needs = " and ".join(filter(None, (package, java)))
    if needs:
        return dict.fromkeys((PTB, *JAVA_METRICS), needs)
    folder = _folder() / "spice" / "lib"
    if not all((folder / jar).is_file() for jar in CORENLP):
        fetch = f"`python -m {PACKAGE}.spice.get_stanford_models` fetches them"
        return {"spice": f"{' and '.join(CORENLP)} in {folder}: {fetch}"}
    return {}


def _failure(error: Exception) -> str:
    return f"it failed ({one_line(f'{type(error).__name__}: {error}')})"


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    return Path(next(iter(spec.submodule_search_locations or [])))  # type: ignore[union-attr]


def _ptb_words(texts: Mapping[int, Iterable[str]]) -> dict[int, list[str]]:
    """Words of the Penn Treebank tokeniser, in lower case, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # It takes a line each, and to Java other signs than \n end lines, too.
    lines = {n: [{"caption": " ".join(t.split())} for t in own] for n, own in texts.items()}
    found = PTBTokenizer().tokenize(lines)
    for number, own in lines.items():
        if len(found.get(number, [])) != len(own):
            raise ValueError(f"the PTB tokeniser lost texts of image {number}: is Java at work?")
    return found


def _java_metric(name: str, candidates: Words, references: Words) -> float:
    """The value of a class of pycocoevalcap."""
    metric = getattr(import_module(f"{PACKAGE}.{name}.{name}"), JAVA_METRICS[name])
    return float(metric().compute_score(references, candidates)[0])


def _check_ids(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> None:
    if not references:
        raise ValueError("no image with references")
    told = "images that have references are without a caption, the first is"
    if absent := sorted(references.keys() - captions.keys()):
        raise ValueError(f"{len(absent)} of {len(references)} {told} {absent[0]}")
    if unknown := sorted(captions.keys() - references.keys()):
        raise ValueError(f"{len(unknown)} captioned images have no references: {unknown[0]}, …")
    if empty := [number for number, texts in references.items() if not texts]:
        raise ValueError(f"image {empty[0]} has no reference")
