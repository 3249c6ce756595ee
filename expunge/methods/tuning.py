"""What LUNAR finds by itself: layers, coefficient and ridge.

Layers come from the abstention score: with c r added to a block's output while it runs, how likely the model finds
abstentions as answers to forget prompts. No text is generated. Windows of layers, coefficient and ridge are tried on
rows that judge nothing: built-in paraphrases of the forget rows, and a fifth of the retain rows.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..data.examples import Example, ForgetTask, Relevance, held_out
from ..data.neighbours import neighbours
from ..data.prompts import KEEP_ROWS, abstentions, general_beside, general_split, rewrites
from ..edits import Edit
from ..errors import NothingToForget
from ..evaluation.text import coherence, deviation_score, rouge_recall
from ..models.activations import hidden_of, hooked, with_hidden
from ..models.generation import greedy, own_answers, score_answers
from ..models.loading import ChatModel

if TYPE_CHECKING:
    from torch import Tensor

    from .lunar import LunarConfig, Target

T = TypeVar("T")

SCORE_ROWS = 8
WINDOWS = 3  # of layers, at most, that are tried


def abstention_scores(
    chat: ChatModel, task: ForgetTask, directions: dict[int, Tensor], coefficient: float = 2.0, rows: int = SCORE_ROWS
) -> dict[int, float]:
    """Mean log-probability a token of abstentions to forget prompts, with c r(l) added to block l's output."""
    chosen = random.Random(0).sample(list(task.forget), min(rows, len(task.forget)))
    texts = abstentions()
    prompts = chat.prompt_ids([e.prompt for e in chosen])
    answers = chat.answer_ids([texts[i % len(texts)] for i in range(len(chosen))])
    scores = {}
    for layer, direction in directions.items():
        shift = (coefficient * direction).to(chat.device, chat.model.dtype)
        block = chat.layout.block(chat.model, layer)
        with hooked((block, "post", lambda _, __, out, shift=shift: with_hidden(out, hidden_of(out) + shift))):
            scored = score_answers(chat, prompts, answers)
        scores[layer] = sum(sum(s.log_probs) / len(s.log_probs) for s in scored) / len(scored)
    return scores


def places(chat: ChatModel, task: ForgetTask, direction: Literal["own"] | Edit) -> list[tuple[int, ...]]:
    """The sets of layers to try, the likeliest first: `windows`, or those that a taught direction is written at."""
    from .lunar import written

    return windows(chat, task) if direction == "own" else [tuple(written(chat, direction))]


def window_shape(count: int) -> tuple[int, int]:
    """(how many layers a window has, how far apart they are) in a model of `count` layers.

    Nine of thirty that move a little each keep more than five that move twice as far: what their detectors answer to
    beside the forget set differs from layer to layer. A deep model has as many, every second or third, as far in all.
    """
    return max(min(round(0.3 * count), 9), 1), max(count // 30, 1)


def windows(chat: ChatModel, task: ForgetTask) -> list[tuple[int, ...]]:
    """Windows of layers to try: the one with the best mean abstention score, and two below it.

    Every third layer is scored, then those around the best; the scores between are interpolated. The score sees only how
    well the direction steers, not how well a layer tells the forget set from the rest, which lower layers often do better.
    """
    count = len(chat.layout)
    layers, step = window_shape(count)
    span = (layers - 1) * step + 1
    scores = _layer_scores(chat, task)
    known = sorted(scores)
    curve = np.interp(range(count), known, [scores[n] for n in known])
    first = int(np.convolve(curve, np.ones(span) / span, mode="valid").argmax())
    down = max(round(span * 0.3), 1)
    starts = dict.fromkeys(max(first - n * down, 0) for n in range(WINDOWS))
    return [tuple(range(start, start + span, step)) for start in starts]


def best_layer(chat: ChatModel, task: ForgetTask) -> int:
    """The one layer with the best abstention score, as the paper edits."""
    scores = _layer_scores(chat, task)
    return max(scores, key=lambda n: scores[n])


def _layer_scores(chat: ChatModel, task: ForgetTask) -> dict[int, float]:
    """Abstention scores of every third layer, and of those around the best."""
    from .lunar import redirections

    count = len(chat.layout)
    coarse = list(range(min(1, count - 1), count, 3))
    directions = redirections(chat, task, list(range(count)))
    scores = abstention_scores(chat, task, {n: directions[n] for n in coarse})
    best = max(scores, key=lambda n: scores[n])
    near = [n for n in range(best - 2, best + 3) if 0 <= n < count and n not in scores]
    return scores | abstention_scores(chat, task, {n: directions[n] for n in near})


# ---------------------------------------------------------------- the search

COEFFICIENTS = (1.8, 2.1, 2.5, 1.5, 1.25)
STEP = 1.25  # from the largest of them on, or down from the smallest, as long as that helps
LARGEST_COEFFICIENT = 10.0
SMALLEST_COEFFICIENT = 0.5
RIDGES = (0.01, 0.003)
TAUGHT_COEFFICIENTS = (1.5, 1.7, 1.3)  # relative to what teaching wrote
TAUGHT_RIDGES = (0.1, 0.3, 0.03)
# Along what teaching wrote, of a task that tells what answers show, the edit is refined and then made as strong as it has
# to be: rewrites with this share of an edit show about as much as what is asked in other words does with all of it.
SHOWN = {"coefficient": 1.3, "ridge": 0.1}
REFINE = 120
OTHER_WORDS = 0.8
LEFT = 0.15  # of what the model showed before, that may be left then
SHOWN_ROWS = 60
STRENGTHS = tuple(0.5 * 1.06**n for n in range(19))  # to 1.4
TIE = 0.5  # points of the Deviation Score that are no reason to prefer the smaller of two coefficients: rows asked in
# other words need more than those that judge a trial
# Points that it costs if all answers are empty or loops: too large a coefficient overshoots the abstention.
BROKEN = 10.0
MARGIN = 0.85  # of an edit has to be enough to forget rewrites: the forget rows' own words are often known better
TUNE_ROWS = 24  # of each role that judge a trial
FEW_BROKEN = 0.1  # of the answers, up to which `SHOWN` does
TUNE_TOKENS = 24
FIT_REWRITES = 2
RETAIN_REWRITES = 250


def tune(
    chat: ChatModel,
    task: ForgetTask,
    config: LunarConfig,
    progress: Callable[[int], None] | None = None,
) -> Edit:
    """The edit at the layers, coefficient and ridge that do best on rows that judge nothing.

    One setting after the other is tried, the others at the best so far; the first values are where it starts. Of
    coefficients that do as well (within `TIE`) the largest is taken; where the first leaves more than half of the
    answers broken, only smaller ones are tried. A trial's loss is the Deviation Score on other rewrites of the forget
    rows, with the edit at `MARGIN` of its strength, and on rows to keep that are not fitted (the
    validation rows, else a fifth of the retain rows), whose ROUGE-1 counts relative to that of the model as it is;
    and `BROKEN` times the share of broken answers to the rewrites, at full strength. Where the task tells what
    answers show, that takes the place of the forget rows' ROUGE-1, relative to the model as it is: the true answers
    of revealed rows are long, and any sentence has some of their words. Of such a task, along a taught direction,
    nothing is searched where the edit of `SHOWN`, fitted with all retain rows, can be made strong enough (`_enough`).
    The forget set is widened by built-in rewrites, and so are the retain rows, or the rewrites' own words would tell the
    two apart. The best trial's edit is the result, as it was judged: fitted again with the rows left out, it can be much
    weaker. A task without retain rows is that of `with_retain`.
    """
    from .lunar import prepare, solve, tokenised
    from .refine import refined

    steps = refine_steps(config, task)
    axes = _axes(chat, task, config)
    task = with_retain(chat, task)
    best = {name: values[0] for name, values in axes.items()}

    def whole(found: dict[str, Any]) -> Edit:
        """Fitted with all retain rows."""
        rows = with_rewrites(task, task.retain, task.validation, config.neighbours)
        target = prepare(chat, rows, found["layers"], config)
        edit = solve(chat, target, config.model_copy(update=found))
        return refined(chat, edit, rows, steps, progress) if steps else edit

    if config.trials == 1 or all(len(values) == 1 for values in axes.values()):
        return whole(best)
    asked = _asked(task, TUNE_ROWS)

    def broken(edit: Edit) -> float:
        """The share of broken answers to the rewrites, with all of an edit."""
        with edit.applied(chat):
            return spoken(chat, asked)[1]

    if task.relevance and config.direction != "own":
        first = best | {name: value for name, value in SHOWN.items() if getattr(config, name) == "auto"}
        strengths = STRENGTHS if config.coefficient == "auto" else (1.0,)
        enough = _enough(chat, task, lambda: whole(first), strengths)
        if enough and broken(enough) <= FEW_BROKEN:
            return enough
    most = (spoken(chat, asked, task.relevance)[0] or 1.0) if task.relevance else 1.0

    def left(edit: Edit) -> float:
        """What an edit at `MARGIN` of its strength leaves of the rewrites."""
        with edit.times(MARGIN).applied(chat):
            return spoken(chat, asked, task.relevance)[0] / most if task.relevance else rouge(chat, asked)

    held = list(task.validation) or held_out(task.retain)
    fit = with_rewrites(task, [e for e in task.retain if e not in set(held)] or held, held, config.neighbours)
    keep = held[:TUNE_ROWS]
    before = rouge(chat, keep)
    trials: list[dict[str, Any]] = []
    prepared: dict[tuple[int, ...], tuple[Target, float]] = {}
    ids, once = _timed(lambda: tokenised(chat, fit, config))

    def trial(found: dict[str, Any]) -> tuple[float, Edit]:
        layers = found["layers"]
        if layers not in prepared:
            prepared.clear()  # one at a time: a target holds the activations of every row
            prepared[layers] = _timed(lambda: prepare(chat, fit, layers, config, ids))
        target, preparing = prepared[layers]
        edit, solving = _timed(lambda: solve(chat, target, config.model_copy(update=found)))
        seconds = once + preparing + solving  # a fit by itself has to do all of it
        shown = left(edit)
        with edit.applied(chat):
            kept = rouge(chat, keep)
        share = broken(edit)
        value = trial_loss(shown, kept, before, share)
        trials.append(
            {**found, "forget": shown, "retain_rouge1": kept, "broken": share, "loss": value} | {"seconds": seconds}
        )
        if progress:
            progress(1)
        return value, edit

    lowest, edit = trial(best)

    def spent() -> bool:
        return config.trials is not None and len(trials) >= config.trials

    def attempt(name: str, value: Any, bar: float = 0.0) -> None:
        """Takes the value where its loss is below the lowest by more than `bar`."""
        nonlocal best, lowest, edit
        if spent():
            return
        reached, other = trial(best | {name: value})
        if reached < lowest - bar:
            best, lowest, edit = best | {name: value}, min(reached, lowest), other

    def further(step: float) -> None:
        """Coefficients beyond the best one, as long as that helps."""
        value = best["coefficient"]
        while best["coefficient"] == value and not spent():
            value *= step
            if not SMALLEST_COEFFICIENT <= value <= LARGEST_COEFFICIENT:
                break
            attempt("coefficient", value, TIE if step < 1 else 0.0)

    for name, values in axes.items():
        if name != "coefficient":
            for value in values[1:]:
                attempt(name, value)
            continue
        first, overshot = best[name], min(trials, key=lambda t: t["loss"])["broken"] > 0.5
        for value in values[1:]:
            if value < first or not overshot:
                attempt(name, value, -TIE if value > best[name] else TIE)
        if len(values) > 1 and best[name] == min(values):
            further(1 / STEP)
        elif len(values) > 1 and best[name] == max(values):
            further(STEP)
    edit, refining = _timed(lambda: refined(chat, edit, fit, steps, progress) if steps else edit)
    taken = next(n for n, t in enumerate(trials) if all(t[name] == value for name, value in best.items()))
    trials[taken]["seconds"] += refining
    edit.meta |= {"retain_rouge1_before": before, "trials": trials, "taken": taken}
    return edit


def _timed(make: Callable[[], T]) -> tuple[T, float]:
    """(what is made, the seconds that it took)."""
    begin = time.perf_counter()
    return make(), time.perf_counter() - begin


def _asked(task: ForgetTask, most: int) -> list[Example]:
    """Some of the forget rows' rewrites that tune; texts to go on with have none, and stand for themselves."""
    rows = rewrites(task.forget, "tune") or list(task.forget)
    return random.Random(0).sample(rows, min(len(rows), most))


def _enough(chat: ChatModel, task: ForgetTask, make: Callable[[], Edit], strengths: Sequence[float]) -> Edit | None:
    """The edit, made once there is something to forget, at the smallest of ascending strengths at which `OTHER_WORDS` of
    it leaves at most `LEFT` of what rewrites of the forget rows show; None where none does.

    Raises:
        NothingToForget: they show nothing as it is.
    """
    assert task.relevance
    asked = _asked(task, SHOWN_ROWS)
    before = spoken(chat, asked, task.relevance)[0]
    if not before:
        raise NothingToForget(
            f"nothing to forget: none of the model's answers to {len(asked)} rewrites of the forget rows shows any of it"
        )
    edit = make()

    def enough(strength: float) -> bool:
        with edit.times(strength * OTHER_WORDS).applied(chat):
            return spoken(chat, asked, task.relevance)[0] <= LEFT * before

    place = bisect.bisect_left(strengths, True, key=enough)
    if place == len(strengths):
        return None
    found = edit.times(strengths[place])
    found.meta = edit.meta | {"coefficient": [strengths[place] * c for c in edit.meta["coefficient"]]}
    return found


def refine_steps(config: LunarConfig, task: ForgetTask) -> int:
    """How many steps an edit is refined."""
    if config.refine is not None:
        return config.refine
    return REFINE if task.relevance and config.direction != "own" else 0


def _axes(chat: ChatModel, task: ForgetTask, config: LunarConfig) -> dict[str, Sequence[Any]]:
    """The values of each setting, the likeliest first; of one that is given, that."""
    layers = places(chat, task, config.direction) if config.layers == "auto" else [config.layers]
    return {"layers": layers, **_values(config)}


def _values(config: LunarConfig) -> dict[str, Sequence[Any]]:
    """`_axes` without the layers, which need the model."""
    own = config.direction == "own"
    tried = {
        "coefficient": COEFFICIENTS if own else TAUGHT_COEFFICIENTS,
        "ridge": RIDGES if own else TAUGHT_RIDGES,
    }
    given = {name: getattr(config, name) for name in tried}
    return {name: tried[name] if value == "auto" else [value] for name, value in given.items()}


def usual_trials(config: LunarConfig) -> int:
    """How many settings are tried where the largest coefficient is not the best; 0 where nothing is to be found."""
    windows = WINDOWS if config.layers == "auto" and config.direction == "own" else 1
    further = windows - 1 + sum(len(values) - 1 for values in _values(config).values())
    count = further + 1 if further and config.trials != 1 else 0
    return min(count, config.trials or count)


def with_retain(chat: ChatModel, task: ForgetTask) -> ForgetTask:
    """The task; where it has no retain rows, with the model's own answers to built-in general prompts as such."""
    if task.retain:
        return task
    return task.but(retain=own_answers(chat, general_split()[0][:KEEP_ROWS], TUNE_TOKENS))


def with_rewrites(
    task: ForgetTask, retain: Sequence[Example], held: Sequence[Example] = (), each: int = 0
) -> ForgetTask:
    """The forget rows with rewrites; the retain rows, some with a rewrite, `each` neighbours of each forget row, and the
    built-in general prompts; what is kept has no prompt of a row held out."""
    asked = random.Random(0).sample(list(retain), min(len(retain), RETAIN_REWRITES))
    return task.but(
        forget=[*task.forget, *rewrites(task.forget, "fit", FIT_REWRITES)],
        retain=[
            *retain,
            *rewrites(asked, "fit"),
            *neighbours(task.forget, retain, each, held),
            *general_beside([*retain, *held]),
        ],
    )


def trial_loss(forget: float, kept: float, before: float, broken: float) -> float:
    """The Deviation Score of a trial from ROUGE-1 (or from what is left of what was shown), what is kept relative to
    `before`, that of the model as it is; and `BROKEN` times the share of broken answers to the forget rows."""
    return deviation_score(forget, min(kept / before, 1.0) if before else 1.0) + BROKEN * broken


def rouge(chat: ChatModel, rows: Sequence[Example]) -> float:
    """Mean ROUGE-1 recall of greedy answers, as long as the longest true answer and at least `TUNE_TOKENS` tokens."""
    return spoken(chat, rows)[0]


def spoken(chat: ChatModel, rows: Sequence[Example], relevance: Relevance | None = None) -> tuple[float, float]:
    """(mean ROUGE-1 recall of greedy answers, as in `rouge`, or their mean relevance; the share of them that are broken)."""
    given = _answers(chat, rows)
    each = relevance(given) if relevance else [rouge_recall(a, e.response)[0] for a, e in zip(given, rows, strict=True)]
    return float(np.mean(each)), 1 - float(np.mean(coherence(given)))


def _answers(chat: ChatModel, rows: Sequence[Example]) -> list[str]:
    """Greedy answers, of the length that `rouge` says."""
    longest = max(map(len, chat.answer_ids([e.response for e in rows])))
    given = greedy(chat, chat.prompt_ids([e.prompt for e in rows]), max(TUNE_TOKENS, longest))
    return [a.text for a in given]
