"""Soft accuracy of VQA v2.

Ten people answered each question; a prediction is right as far as they agree with it. Answers are
compared in a normalised spelling. Source: docs/papers/albef.md, section 7; salesforce/ALBEF@b9727e4
`vqaTools/vqaEval.py`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

VOTES = 3  # that make an answer fully right

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(DIGITS.split())} | {"none": "0"}
ARTICLES = ("a", "an", "the")
# As the evaluator spells them. Words are in lower case here, so that its "I'm" never matches.
SHORT_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
# Each with one apostrophe missing; the evaluator takes it away from one word instead.
MISSPELT = {
    form[:place] + form[place + 1 :]: form
    for form in SHORT_FORMS.split()
    for place, sign in enumerate(form)
    if sign == "'"
} | {"somebody'd": "somebodyd"}


def without_punctuation(answer: str) -> str:
    """Deletes a sign that stands beside a space, and any if there is a comma within a number;
    replaces it by a space elsewhere. Points go unless a digit follows."""
    number = re.search(r"\d,\d", answer)
    cleaned = answer
    for sign in PUNCTUATION:
        apart = number or f"{sign} " in answer or f" {sign}" in answer
        cleaned = cleaned.replace(sign, "" if apart else " ")
    return re.sub(r"\.(?!\d)", "", cleaned)


def normalised(answer: str) -> str:
    """A prediction as it is compared: punctuation, case, numbers, articles and short forms."""
    cleaned = without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(MISSPELT.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """In [0, 1]: min(1, votes / 3), the mean over leaving out each of the answers in turn;
    these lose their punctuation only where they are not all the same."""
    if len(set(answers)) > 1:
        answers = [without_punctuation(answer) for answer in answers]
    votes = list(answers).count(normalised(prediction))
    others = len(answers) - votes
    # Left out is either one of the votes for the prediction or one against it.
    return (votes * min(1, (votes - 1) / VOTES) + others * min(1, votes / VOTES)) / len(answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the prediction is one of the answers, letter by letter, else 0.0."""
    return float(prediction in answers)


MATCHES = {"soft": soft_accuracy, "exact": exact_match}
"""How right a prediction is by the answers of several people, or by the one right answer."""


def percent(accuracies: Sequence[float]) -> float:
    """Their mean, in percent with two decimals."""
    return round(100 * sum(accuracies) / len(accuracies), 2)


class Answered(NamedTuple):
    """A prediction: the question's place in its split, its id, the answer, how right that is (None
    where the truth is not known), and the kinds of question it belongs to."""

    place: int
    question_id: int
    answer: str
    accuracy: float | None
    kinds: tuple[str, ...]


def judged(
    batch: Mapping[str, Any],
    answers: Sequence[str],
    match: Callable[[str, Sequence[str]], float] = soft_accuracy,
) -> list[Answered]:
    """The answers (B,) to a batch of `shared.data.image_text.vqa.VQAData`, which may hold the true
    `answers` and the `kinds` of question, each a list of B lists of strings."""
    size = len(answers)
    truth, kinds = batch.get("answers", [None] * size), batch.get("kinds", [()] * size)
    rows = (batch["indices"].tolist(), batch["question_ids"].tolist(), answers, truth, kinds)
    found = []
    for place, number, answer, known, kind in zip(*rows, strict=True):
        accuracy = None if known is None else match(answer, known)
        found.append(Answered(place, number, answer, accuracy, tuple(kind)))
    return found


def accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """`vqa_accuracy`, in percent, and `vqa_accuracy_<kind>`; nothing if no truth is known."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in answered:
        if row.accuracy is not None:
            groups["vqa_accuracy"].append(row.accuracy)
            for kind in row.kinds:
                slug = re.sub(r"\W+", "_", kind.lower()).strip("_")
                groups[f"vqa_accuracy_{slug}"].append(row.accuracy)
    return {name: percent(values) for name, values in groups.items()}
