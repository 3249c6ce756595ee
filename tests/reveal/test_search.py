from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.examples import Cut
from expunge.errors import ExpungeError, InputError
from expunge.evaluation.embedding import encoder_for
from expunge.evaluation.text import repeats
from expunge.reveal import after, asking, tasks
from expunge.reveal import search as module
from expunge.reveal.asking import Asker, RevealConfig
from expunge.reveal.bandit import BanditConfig
from expunge.reveal.memo import Memo
from expunge.reveal.score import harmonic, vendi
from expunge.reveal.search import search
from expunge.reveal.soft import SoftPrompts
from expunge.reveal.subject import subject
from expunge.reveal.targets import Target, checked, plain_task
from expunge.reveal.tasks import oracle

SMALL = dict(budget=9, together=2, answers=4, max_new_tokens=6, start=4, rounds=2, pool=24, best=2, more=3, wander=2.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BanditConfig", lambda **given: BanditConfig(steps=30, **given))


def letters(answers):
    return [min(a.count("e") / 3, 1.0) for a in answers]


def target(relevance=letters) -> Target:
    written = ("Write.", "Tell me a story.")
    return Target("letters", "An instruction was given. The instruction was to", written, relevance, plain_task)


def test_a_search_spends_its_budget_and_keeps_the_best(tiny):
    found = search(tiny, target(), RevealConfig(**SMALL), Memo())
    assert len(found.queries) == 9 == len({q.instruction for q in found.queries})
    assert found.curve == sorted(found.curve)
    assert 0 < len(found.kept) <= 2
    assert {p for p, _, _ in found.pairs} == set(found.kept)
    assert len(found.pairs) == len(found.kept) * 7
    best = list(dict.fromkeys(found.pairs))
    assert found.everything[: len(best)] == best
    assert {p for p, _, _ in found.everything} == {q.instruction for q in found.queries}
    many = search(tiny, replace(target(), more=5), RevealConfig(**{**SMALL, "more": None}), Memo())
    assert len(many.pairs) == len(many.kept) * 9  # a task's own number; a setting goes before it
    assert max(q.score for q in found.queries) == found.curve[-1]
    # The first that is kept is the best of a set of two, by itself: half as diverse for the set's size.
    alone = {q.instruction: harmonic(sum(q.relevances) / 4, q.diversity / 2, 0.25) for q in found.queries}
    assert alone[found.kept[0]] == pytest.approx(max(alone.values()))
    assert {q.round for q in found.queries} == {0, 1}
    for q in found.queries:
        assert q.score == 0 or q.score == pytest.approx(1 / (0.25 / q.diversity + 0.75 / (sum(letters(q.answers)) / 4)))


def test_the_bandit_picks_the_highest_bound(tiny, monkeypatch):
    """After the random start, of what is left: here, as if longer instructions promised more."""
    monkeypatch.setattr(module.NeuralUCB, "ucb", lambda self, features: features[:, 0])
    lengths = {}

    def decoded(self, soft, points, outer, examples=()):
        texts = [f"instruction {n}" for n in range(len(points))]
        features = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(outer))
        lengths.update({f"{t}": float(f[0]) for t, f in zip(texts, features, strict=True)} if outer == 0 else {})
        return texts, features

    monkeypatch.setattr(Asker, "decoded", decoded)
    found = search(tiny, target(), RevealConfig(**{**SMALL, "rounds": 1}), Memo())
    asked = [q.instruction for q in found.queries]
    left = sorted(set(lengths) - set(asked[:4]), key=lambda t: -lengths[t])
    assert asked[4:] == left[:5]


def test_the_bandit_learns_of_all_that_was_scored_before_each_pick(tiny, monkeypatch):
    calls = []

    class Recording(module.NeuralUCB):
        def fit(self, features, scores):
            calls.append(("fit", [round(float(s), 4) for s in scores]))
            return super().fit(features, scores)

        def tried(self, features):
            calls.append(("tried", len(features)))
            return super().tried(features)

        def ucb(self, features):
            calls.append(("ucb", 1))
            return super().ucb(features)

    monkeypatch.setattr(module, "NeuralUCB", Recording)
    notes = []
    found = search(tiny, target(), RevealConfig(**SMALL), Memo(), lambda count, note: notes.append(note))
    scores = [round(q.score, 4) for q in found.queries]
    pick = [("ucb", 1), ("tried", 1)]
    first = [("fit", scores[:3]), ("tried", 3), *pick * 2, ("fit", scores[:5]), *pick, ("fit", scores[:6])]
    second = [("fit", scores[:6]), ("tried", 6), *pick * 2, ("fit", scores[:8]), *pick, ("fit", scores)]
    assert calls == [*first, *second]
    assert notes[: len(scores)] == [f"best score {best:.3f}" for best in found.curve]


def test_the_same_seed_finds_the_same_and_another_something_else(tiny):
    first, again, other = (search(tiny, target(), RevealConfig(**SMALL, seed=s), Memo()) for s in (1, 1, 2))
    assert first == again
    assert first.queries != other.queries


def test_what_was_relevant_is_gone_on_with_until_there_is_enough(tiny, tmp_path):
    def odd(answers):
        return [float(len(a) % 2) for a in answers]

    told: list[tuple[int, str]] = []
    many = {**SMALL, "budget": 50, "start": 20, "together": 10, "pool": 80}  # to most raw prompts it says nothing

    def found(wanted: int, memo: Memo):
        told.clear()
        onward = replace(target(odd), raw=True, onward=wanted)
        return search(tiny, onward, RevealConfig(**many), memo, lambda *said: told.append(said))

    none = found(0, Memo())
    assert not none.onward
    relevant = {a.strip(): i for i, a, r in reversed(none.everything) if r >= 0.5 and not repeats(a)}
    few = len(relevant)
    assert few
    assert not found(1, Memo()).onward  # there are as many already
    once = found(few + 1, Memo(tmp_path / "memo"))
    assert sum(count for count, _ in told) == len(once.queries)
    assert told[-1][1].endswith(f" of {few + 1} relevant answers")
    assert once.pairs == none.pairs
    assert (once.score, once.kept_score) == (none.score, none.kept_score)
    went_on = [p for p, *_ in once.onward[:: after.ONWARD]]
    assert set(went_on) <= set(relevant)  # the answers by themselves
    fewest = Counter(relevant.values())
    assert [fewest[relevant[p]] for p in went_on[:10]] == sorted(fewest[i] for i in relevant.values())[
        : len(went_on[:10])
    ]
    assert sum(r >= 0.5 for *_, r in once.onward) >= 1
    assert once == found(few + 1, Memo(tmp_path / "memo"))
    assert set(once.onward) <= set(once.everything)
    far = found(few + 300, Memo())
    assert any(p not in relevant for p, *_ in far.onward)  # after what it said when it went on


def test_what_one_instruction_brings_most_of_is_not_all_that_is_gone_on_with(tiny, monkeypatch):
    def answers(ask, asked, count, name):
        """After A all is relevant, after B little, after what came of them likewise."""
        return [
            ([f"{text} {len(text)}w{n}" for n in range(count)], [float(text[0] == "A" or n == 0) for n in range(count)])
            for text in asked
        ]

    monkeypatch.setattr(Asker, "answered", answers)
    wide = replace(target(), raw=True, onward=400)
    ask = Asker(tiny, wide, RevealConfig(**SMALL), Memo(), None, None)  # type: ignore[arg-type]
    pairs = [*(("A", f"A{n}", 1.0) for n in range(90)), *(("B", f"B{n}", 1.0) for n in range(10))]
    found = after.onward(pairs, ask)
    came = Counter(text[0] for text, _, r in found if r >= 0.5)
    assert came["B"] >= 60


# Batches of 2, 1, 2, 1, 2, 1 instructions, and the further answers: answers are kept before they are judged.
@pytest.mark.parametrize(("judged", "left"), [(2, 5), (5, 3)])
def test_a_killed_search_goes_on_to_the_same_result(tiny, tmp_path, judged, left, monkeypatch):
    calls = []
    real = asking.sampled
    monkeypatch.setattr(asking, "sampled", lambda *a: calls.append(a) or real(*a))
    whole = search(tiny, target(), RevealConfig(**SMALL), Memo())
    assert len(calls) == 7
    asked = 0

    def killed(answers):
        nonlocal asked
        asked += 1
        if asked > judged:
            raise KeyboardInterrupt
        return letters(answers)

    config = RevealConfig(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        search(tiny, target(killed), config, Memo(tmp_path / "memo", config.model_dump()))
    with open(tmp_path / "memo" / "said.jsonl", "a") as f:
        f.write('{"name": "answers query')  # what a kill may leave
    calls.clear()
    resumed = search(tiny, target(), config, Memo(tmp_path / "memo", config.model_dump()))
    assert resumed == whole
    kinds = [[type(a) for q in found.queries for a in q.answers] for found in (whole, resumed)]
    assert kinds[0] == kinds[1]
    assert Cut in kinds[0]
    assert len(calls) == left  # only what was not there yet
    with pytest.raises(InputError, match="another search"):
        Memo(tmp_path / "memo", config.model_dump() | {"seed": 5})


def test_a_mended_oracle_is_asked_anew_about_the_answers_that_were_kept(tiny, tmp_path, monkeypatch):
    calls = []
    real = asking.sampled
    monkeypatch.setattr(asking, "sampled", lambda *a: calls.append(a) or real(*a))
    whole = search(tiny, target(), RevealConfig(**SMALL), Memo())
    first = [0.9] * 4

    def breaking(answers):
        if first:
            return [first.pop() for _ in answers]
        raise RuntimeError

    with pytest.raises(InputError, match="raised RuntimeError"):
        search(tiny, replace(target(breaking), version="1"), RevealConfig(**SMALL), Memo(tmp_path / "memo"))
    calls.clear()
    mended = search(tiny, replace(target(), version="2"), RevealConfig(**SMALL), Memo(tmp_path / "memo"))
    assert mended == whole  # nothing that the broken one said counts
    assert len(calls) == 6  # the first batch was answered before


def test_an_oracle_of_another_source_is_another_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def version(value: float) -> str:
        (tmp_path / "mine_own.py").write_text(f"def judge(answers): return [{value}] * len(answers)\n")
        sys.modules.pop("mine_own", None)
        return oracle("mine_own:judge").version

    assert version(0.5) == version(0.5) != version(0.25)


def test_a_memo_whose_first_line_was_torn_says_anew_what_it_is_of(tmp_path):
    (tmp_path / "said.jsonl").write_text('{"name": "about", "val')
    Memo(tmp_path, {"seed": 1}).once("x", lambda: 1)
    assert Memo(tmp_path, {"seed": 1}).once("x", lambda: 2) == 1
    with pytest.raises(InputError, match="another search"):
        Memo(tmp_path, {"seed": 2})


def test_written_and_random_instructions_have_the_same_budget(tiny):
    written = search(tiny, target(), RevealConfig(**SMALL, search="written"), Memo())
    assert [q.instruction for q in written.queries] == ["Write.", "Tell me a story."]
    drawn = search(tiny, target(), RevealConfig(**SMALL, search="random"), Memo())
    assert len(drawn.queries) == 9
    ours = search(tiny, target(), RevealConfig(**SMALL), Memo())
    assert [q.instruction for q in drawn.queries[:3]] == [
        q.instruction for q in ours.queries[:3]
    ]  # the first are random


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        (lambda a: 1 / 0, "raised ZeroDivisionError"),
        (lambda a: sys.exit(0), "raised SystemExit"),
        (lambda a: [0.5], "1 numbers for 4 answers"),
        (lambda a: [float("nan")] * len(a), "nan"),
        (lambda a: [2.0] * len(a), "from 0 to 1"),
        (lambda a: ["x"] * len(a), "'x'"),
    ],
)
def test_a_wrong_oracle_is_a_clear_error(tiny, relevance, message, tmp_path):
    with pytest.raises(InputError, match=message):
        search(tiny, target(relevance), RevealConfig(**SMALL), Memo(tmp_path / "memo"))
    kept = [json.loads(line)["name"] for line in (tmp_path / "memo" / "said.jsonl").read_text().splitlines()]
    assert "instructions 0" in kept  # finished work


def test_empty_answers_are_a_clear_error(tiny, monkeypatch):
    real = asking.sampled

    def silent(*args):
        return [type(g)("", (), True) for g in real(*args)]

    monkeypatch.setattr(asking, "sampled", silent)
    with pytest.raises(ExpungeError, match="all answers to 3 instructions are empty"):
        search(tiny, target(lambda a: [0.0] * len(a)), RevealConfig(**SMALL), Memo())


@pytest.mark.parametrize("kind", ["neuralucb", "random"])
def test_a_model_that_decodes_no_instruction_is_a_clear_error(tiny, monkeypatch, kind):
    monkeypatch.setattr(SoftPrompts, "decoded", lambda self, points, seed, examples: [""] * len(points))
    with pytest.raises(ExpungeError, match="it decodes no instruction"):
        search(tiny, target(), RevealConfig(**SMALL, search=kind), Memo())


def test_nothing_relevant_keeps_nothing(tiny):
    found = search(tiny, target(lambda a: [0.0] * len(a)), RevealConfig(**SMALL), Memo())
    assert found.kept == []
    assert found.score == found.kept_score == 0
    assert found.curve[-1] == 0


def test_a_budget_of_none_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RevealConfig(budget=0)


def test_a_user_s_module_beside_them(tmp_path, monkeypatch):
    (tmp_path / "own_relevance.py").write_text("def f(answers):\n    return [1.0] * len(answers)\n")
    (tmp_path / "broken_relevance.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    assert oracle("own_relevance:f").relevance(["x"]) == [1.0]
    with pytest.raises(InputError, match="SyntaxError"):
        oracle("broken_relevance:f")


@pytest.mark.parametrize("name", ["toxicity", "code"])
def test_hand_written_instructions_last_for_the_usual_budget(name):
    assert len(set(tasks.TASKS[name](None).written)) == 100 == len(set(tasks._SENTENCES)) == len(set(tasks.WRITTEN))


def test_oracles_by_name():
    assert oracle("tests.reveal.test_search:letters").relevance(["eee", "x"]) == [1.0, 0.0]
    for given in (np.full(2, 0.5, np.float32), torch.full((2,), 0.5)):
        assert checked("an array", lambda _, given=given: given)(["x", "y"]) == [0.5, 0.5]
    assert checked("an array", lambda _: np.array([True, False]))(["x", "y"]) == [1.0, 0.0]
    for wrong in ("nothing", "tests.reveal.test_search:no", "no.such:f", ""):
        with pytest.raises(InputError, match="module:function"):
            oracle(wrong)


def test_the_relevance_of_a_subject():
    about = subject("Anna Vells")
    good = "Anna Vells was born in Ostrava in 1871 and wrote The Mill."
    half = "I think that Anna Vells came from Ostrava."
    assert about.relevances([good, half, "She was born in 1871.", "I don't know who Anna Vells is.", ""]) == (
        pytest.approx([1, 1 / 3, 0, 0, 0])
    )
    assert len(set(about.written)) == 100
    with pytest.raises(InputError, match="--subject"):
        subject(" ")


def test_the_score_is_of_all_that_the_budget_revealed(tiny):
    """And not of what was chosen: fewer kept, or none that is asked again, change the other score only."""
    found = search(tiny, target(), RevealConfig(**SMALL), Memo())
    fewer = search(tiny, target(), RevealConfig(**{**SMALL, "best": 1, "more": 0, "rounds": 1}), Memo())
    whole = search(tiny, target(), RevealConfig(**{**SMALL, "best": 2, "rounds": 1}), Memo())
    assert fewer.score == whole.score
    assert fewer.kept_score != whole.kept_score
    answers = [a for q in found.queries for a in q.answers]
    relevance = sum(r for q in found.queries for r in q.relevances) / len(answers)
    diversity = vendi(encoder_for(tiny)[1]([a or " " for a in answers])) / after.SET_ROWS
    assert len(answers) <= after.SET_ROWS
    assert found.score == pytest.approx(harmonic(relevance, diversity, 0.25))


def test_how_an_instruction_begins_is_a_coordinate(tiny):
    openings = ("Tell me of", "List all that", "Say")
    soft = SoftPrompts(tiny, "An instruction was given. It was:", openings, 1.0, 1.5, 0)
    points = soft.points(24)
    begins = [min(int(3 * p), 2) for p in points[:, -1]]
    assert set(begins) == {0, 1, 2}
    texts = soft.decoded(points, 1)
    assert texts == soft.decoded(points, 1)
    said = [(n, text) for n, text in enumerate(texts) if text]
    assert len(said) > 3
    assert all(text.startswith(f"{openings[begins[n]]} ") for n, text in said)
    alone = SoftPrompts(tiny, "An instruction was given. It was:", openings[:1], 1.0, 1.5, 0)
    first = [n for n, k in enumerate(begins) if k == 0]
    every = alone.decoded(points, 1)  # what is drawn for a row is its place's
    assert [every[n] for n in first] == [texts[n] for n in first]
    near = soft.around(points[:4], 200, 1)
    assert torch.equal(near[:, -1], points[[n % 4 for n in range(200)], -1])  # they begin as it does
    apart = (near - points[[n % 4 for n in range(200)]])[:, :-1].abs()
    assert 0.03 < apart.mean() < 0.12
    assert near.min() >= 0
    assert near.max() <= 1
    assert soft.decoded(torch.ones(2, points.shape[1]), 1)  # the edge of the cube


def test_what_is_decoded_depends_on_the_soft_prompt(tiny):
    """And not on chance and its beginning alone, which are the same here."""
    soft = SoftPrompts(tiny, "An instruction was given. It was:", ("Say",), 1.0, 1.5, 0)
    low, high = torch.zeros(12, soft.points(1).shape[1]), torch.ones(12, soft.points(1).shape[1])
    assert soft.decoded(low, 1) == soft.decoded(low, 1) != soft.decoded(high, 1)
    other = SoftPrompts(tiny, "An instruction was given. It was:", ("Say",), 1.0, 1.5, 1)
    assert other.decoded(low, 1) != soft.decoded(low, 1)  # another seed has another map


def test_an_example_stands_before_an_instruction(tiny):
    """Each soft prompt has its own: as decoding with the example in the lead."""
    lead = "An instruction was given. It was:"
    soft = SoftPrompts(tiny, lead, ("Tell me of", "Say"), 1.0, 1.5, 0)
    points = soft.points(6)
    points[:, -1] = 0.0
    examples = ["Say a name.", "", "Say a name.", "", "Say a name.", ""]
    texts = soft.decoded(points, 1, examples)
    assert all(text.startswith("Tell me of ") for text in texts if text)
    plain = SoftPrompts(tiny, lead, ("Tell me of",), 1.0, 1.5, 0)
    shown = SoftPrompts(tiny, f"{lead} Say a name.\n{lead}", ("Tell me of",), 1.0, 1.5, 0)
    for n, (with_it, without) in enumerate(zip(shown.decoded(points, 1), plain.decoded(points, 1), strict=True)):
        assert texts[n] == (with_it if examples[n] else without)  # shorter rows are padded beside longer ones
    assert soft.decoded(points, 1, ["Say a name."] * 6) == shown.decoded(points, 1)
    assert soft.decoded(points, 1, ["Say a name."] * 6) != soft.decoded(points, 1)


def test_later_rounds_look_around_the_best_and_show_them(tiny, monkeypatch):
    calls = []
    real = SoftPrompts.decoded

    def decoded(self, points, seed, examples=()):
        calls.append((points, list(examples)))
        return real(self, points, seed, examples)

    monkeypatch.setattr(SoftPrompts, "decoded", decoded)
    config = RevealConfig(**{**SMALL, "rounds": 2, "best": 2})
    found = search(tiny, target(), config, Memo())
    assert [bool(examples) for _, examples in calls] == [False, True]
    before = sorted((q for q in found.queries if q.round == 0), key=lambda q: -q.score)
    assert len(found.queries) > len(before)
    assert calls[1][1] == [before[n % 2].instruction for n in range(config.pool)]
    at = calls[0][0][[q.place for q in before[:2]]]
    apart = calls[1][0] - at[[n % 2 for n in range(config.pool)]]
    assert 0.03 < apart[:, :-1].abs().mean() < 0.12  # by chance it would be a third
    assert not apart[:, -1].any()
