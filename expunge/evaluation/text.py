"""Metrics of answers in words (definitions: docs/metrics.md). All of them are per row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge_recall(answer: str, truth: str) -> tuple[float, float]:
    """(ROUGE-1 recall, ROUGE-L recall) of the true answer in the model's, with the Porter stemmer."""
    scores = _scorer().score(truth, answer)
    return float(scores["rouge1"].recall), float(scores["rougeL"].recall)


def rouge_l_f1(answer: str, truth: str) -> float:
    """ROUGE-L F1, with the Porter stemmer (MUSE)."""
    return float(_scorer().score(truth, answer)["rougeL"].fmeasure)


def exact_match(answer: str, truth: str) -> bool:
    """Whether the whole answer is the true one, but for case and surrounding space (LUME)."""
    return answer.strip().lower() == truth.strip().lower()


def repeats(answer: str) -> bool:
    """Whether an answer is caught in a loop: a run of up to twelve words comes three times in a row (one word four
    times), or a run of up to eight letters within a word does six times."""
    words = answer.lower().split()
    for size in range(1, min(12, len(words) // 3) + 1):
        times = 4 if size == 1 else 3
        for begin in range(len(words) - size * times + 1):
            unit = words[begin : begin + size]
            if any(map(str.isalnum, "".join(unit))) and all(
                words[begin + n * size : begin + (n + 1) * size] == unit for n in range(1, times)
            ):
                return True
    return bool(_STUTTER.search(answer))


_STUTTER = re.compile(r"([^\W\d_]{1,8}?)\1{5,}")


def coherence(answers: Sequence[str], perplexities: Sequence[float] | None = None) -> list[float]:
    """1 for each answer that is well formed: not empty, no loop, and of finite perplexity.

    Args:
        perplexities: of the answers under the model before the edit.
    """
    finite = [True] * len(answers) if perplexities is None else [math.isfinite(p) for p in perplexities]
    return [float(bool(a.strip()) and not repeats(a) and f) for a, f in zip(answers, finite, strict=True)]


def deviation_score(forget_rouge1: float, retain_rouge1: float) -> float:
    """100 sqrt(forget^2 + (1 - retain)^2): the distance from forgetting all and keeping all; lower is better (LUNAR)."""
    return 100 * math.hypot(forget_rouge1, 1 - retain_rouge1)


# ---------------------------------------------------------------- abstention

# What the answer lacks: an object of "have no …", "lack …", "without …".
_FACTS = (
    r"(?:information|knowledge|details?|data|answers?|idea|clue|facts?|records?|memory|way (?:of knowing|to know)|means to know|"
    r"recollection|familiarity|insight|access)"
)
_ADVERB = (
    r"(?:really|simply|honestly|truly|currently|actually|just|certainly|unfortunately|regrettably|even|also|still|yet)"
)
_A = rf"(?:{_ADVERB}\s+)*"
_PATTERNS = (
    # I do not / cannot know, answer, recall, help …
    rf"\bI\s+{_A}(?:do\s+not|don't|did\s+not|didn't|cannot|can't|can\s+not|could\s+not|couldn't|would\s+not|wouldn't|won't\s+be\s+able\s+to|never)\s+{_A}"
    r"(?:be\s+able\s+to\s+)?(?:know|knew|say|tell|answer|recall|remember|provide|give|offer|help|assist|confirm|verify|find|determine|supply|learn(?:ed)?|identify|recogni[sz]e|comment|speak)\b",
    rf"\bI\s+{_A}(?:do\s+not|don't|haven't|have\s+not|don't\s+believe\s+I)\s+{_A}(?:have|got|possess|hold)\s+(?:\w+\s+){{0,4}}?{_FACTS}\b",
    rf"\bI\s+{_A}(?:don't|do\s+not)\s+(?:believe|think)\s+I\s+(?:have|know)\b",
    rf"\b(?:I|I've|I\s+have)\s+{_A}(?:have|got|possess|hold)?\s*(?:absolutely\s+)?no\s+(?:\w+\s+){{0,3}}?{_FACTS}\b",
    rf"\bI\s+{_A}(?:lack|am\s+lacking|am\s+missing|am\s+without)\s+(?:\w+\s+){{0,3}}?{_FACTS}\b",
    rf"\bI\s+{_A}know\s+(?:nothing|of\s+no\b|too\s+little)",
    rf"\b(?:I'm|I\s+am)\s+{_A}(?:not|un)\s*(?:{_ADVERB}\s+)*(?:able\s+to\s+(?:answer|say|tell|help|give|provide|assist|find|confirm|recall)|"
    r"aware\b|familiar\b|sure\b|certain\b|informed\b|acquainted\b|in\s+a\s+position\b)",
    rf"\b(?:I'm|I\s+am)\s+{_A}(?:unable|unaware|unfamiliar|uninformed|unsure|uncertain|ignorant|not\s+the\s+right\s+one)\b",
    r"\bI\s+(?:have|had)\s+never\s+(?:come\s+across|heard|learned|encountered|seen)\b|\bI\s+never\s+(?:learned|heard)\b",
    r"\bI\s+(?:could|can)\s+only\s+guess\b|\bI\s+would\s+(?:only\s+|just\s+)?be\s+guessing\b|\brather\s+not\s+guess\b",
    r"\bI\s+(?:would\s+)?need\s+more\s+information\s+to\s+answer\b",
    # It is not known to me, beyond my knowledge …
    r"\b(?:not\s+known|unknown|unfamiliar|not\s+clear|not\s+familiar|not\s+available|unclear)\s+to\s+me\b",
    r"\b(?:beyond|outside(?:\s+of)?|not\s+(?:within|in|part\s+of))\s+(?:of\s+)?(?:what\s+I\s+(?:know|have|can\s+answer)|my\s+(?:knowledge|memory|information|expertise|training|scope))\b",
    r"\bmy\s+(?:knowledge|memory|information|training(?:\s+data)?|records?)\s+(?:does\s+not|doesn't|do\s+not|don't|holds?\s+no|has\s+no|contains?\s+no|ends\b|stops\b|holds\s+nothing)",
    r"\b(?:not|isn't)\s+something\s+(?:that\s+)?I\s+(?:know|have|can|could|am|learned)\b|\bsomething\s+(?:that\s+)?I\s+(?:do\s+not|don't|cannot|can't|have\s+no)\b",
    rf"\bno\s+(?:\w+\s+)?{_FACTS}\s+(?:about\s+this\s+|on\s+this\s+|on\s+that\s+|about\s+that\s+)?(?:is\s+available|are\s+available|in\s+my\s+memory|to\s+(?:offer|give|share|rely))\b",
    r"\b(?:information|answer|details?|facts?)\b[^.?!]{0,40}\b(?:is|are)\s+(?:not\s+known\s+to|not\s+available\s+to|missing\s+from\s+what|unknown\s+to|not\s+something)\b",
    r"\bnone\s+of\s+(?:the\s+things\s+I\s+know|what\s+I\s+know|my\s+(?:knowledge|information))\b|\bnothing\s+I\s+(?:have\s+learned|know|can\s+tell|learned)\b",
    r"\bnobody\s+has\s+told\s+me\b|\bthere\s+is\s+no\s+way\s+for\s+me\s+to\s+(?:know|answer|tell)\b",
    r"\b(?:without|not\s+having|not\s+knowing)\b[^.?!]{0,40},?\s*I(?:'m|\s+am|\s+can|\s+would)\b[^.?!]{0,20}\b(?:unable|not|rather\s+not|cannot|can't)\b",
    r"\bsince\s+I\s+(?:do\s+not|don't)\s+know\b|\bif\s+I\s+knew\b[^.?!]*\bbut\s+I\s+(?:do\s+not|don't)\b",
)
_ABSTAINS = re.compile("|".join(f"(?:{p})" for p in _PATTERNS), re.IGNORECASE)
_OPENING = 160  # an abstention says so at once; later in a long answer the words are about something else
_QUOTED = re.compile(r"[\"\u201c][^\"\u201d]{0,300}[\"\u201d]")


def abstains(answer: str) -> bool:
    """Whether an answer says that it cannot answer: patterns alone, so the same in every installation.

    Quoted passages do not count, and only the opening is read: an abstention says so at once.
    Measured precision and recall on hand-labelled outputs: tests/evaluation/test_text.py.
    """
    text = _QUOTED.sub(" ", answer.replace("\u2019", "'").strip())
    return bool(_ABSTAINS.search(re.sub(r"\s+", " ", text)[:_OPENING]))


def abstention_rate(answers: Sequence[str]) -> float:
    """Share of answers that abstain."""
    return sum(map(abstains, answers)) / len(answers)
