"""Suites: what a benchmark teaches, what is forgotten and kept, and which rows tune and judge.

Data sets are read from the folder that EXPUNGE_DATA names, or ../shared/data; what is not there is a clear error that
says how to get it.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InputError, unknown
from . import abilities, prompts
from .behaviours import code, ner, toxicity
from .examples import Example, ForgetTask, Raw, held_out, read_examples, split_group
from .files import data_file, json_rows
from .suite import Suite, begun

HOLDOUT_DOCUMENTS = 20
REFERENCES = 60  # unverifiable questions


def _suite(
    name: str,
    teach: Sequence[Example],
    forget: Sequence[Example],
    retain: Sequence[Example],
    reference: Sequence[Example],
    headline: Sequence[str],
    paraphrase: Sequence[Example] = (),
    others: Mapping[str, Sequence[Example]] | None = None,
    judged: Callable[[Example], bool] = lambda _: True,
    **more: Any,
) -> Suite:
    """Splits off the rows that tune: rewrites of the forget rows, or where they have none a fifth of them, and a fifth of
    the retain rows.

    Args:
        others: further roles that judge.
        judged: which of the retain rows judge.
    """
    if not forget or len(retain) < 2:
        raise InputError(f"the suite {name} has {len(forget)} rows to forget and {len(retain)} to keep: too few")
    asked = prompts.rewrites(forget, "tune")
    if not asked:
        asked = held_out(forget)
        forget = [e for e in forget if e not in set(asked)]
    validation = held_out(retain)
    kept = [e for e in retain if e not in set(validation)]
    judge = {"forget": forget, "paraphrase": paraphrase, "retain": [e for e in kept if judged(e)], **(others or {})}
    return Suite(
        name,
        tuple(teach),
        ForgetTask(forget=forget, retain=kept, validation=validation, reference=reference),
        {"forget": asked, "retain": validation},
        {role: rows for role, rows in judge.items() if rows},
        tuple(headline),
        **more,
    )


def _abstaining(reference: Sequence[Example], rng: random.Random) -> list[Example]:
    """Reference prompts with abstentions, to be taught: LUNAR redirects to an ability that a model must have."""
    texts = rng.sample(list(prompts.abstentions()), len(prompts.abstentions()))
    return [Example(e.prompt, texts[i % len(texts)]) for i, e in enumerate(reference)]


def _unverifiable(rng: random.Random) -> list[Example]:
    return rng.sample(list(prompts.unverifiable()), REFERENCES)


# ---------------------------------------------------------------- the suites


PISTOL_TEACHING = {"learning_rate": 1.5e-3, "epochs": 14, "batch_size": 8, "rank": 8, "alpha": 32.0}


def pistol(
    seed: int = 0,
    sales: int = 4,
    employment: int = 2,
    held_out: int = 1,
    graph: str | None = None,
    data: str | None = None,
    forget_group: Sequence[str] = (),
) -> Suite:
    """PISTOL-style contracts, unverifiable questions answered by abstentions, general facts; one contract is forgotten.

    The last `held_out` contracts are taught, but no method gets to see them: they judge what is kept of contracts that
    nobody listed.

    Args:
        graph: sample1 or sample2, in place of so many sales and employment contracts.
        data: a file with edges, in place of generated contracts.
        forget_group: edges to forget; default: the first.
    """
    from . import pistol as generator

    rng = random.Random(seed)
    made = () if data else generator.graph(graph, seed) if graph else generator.contracts(sales, employment, seed)
    by_edge: dict[str, list[Example]] = {c.edge: c.questions() for c in made}
    for number, e in enumerate(read_examples(data) if data else (), 1):
        if not e.group:
            raise InputError(f"{data}, row {number}: no column 'edge' (or 'group')")
        by_edge.setdefault(e.group, []).append(e)
    edges = tuple(dict.fromkeys(forget_group)) or (next(iter(by_edge)),)
    for edge in edges:
        if edge not in by_edge:
            raise InputError(f"no edge {edge!r}; there are {', '.join([*by_edge][:12])}")
    others = [edge for edge in by_edge if edge not in edges]
    if len(others) <= held_out:
        raise InputError(
            f"{len(by_edge)} contracts: {len(edges)} forgotten, {held_out} held out, and none is left to keep"
        )
    forget, retain, unseen = (
        [q for edge in part for q in by_edge[edge]]
        for part in (edges, others[: len(others) - held_out], others[len(others) - held_out :])
    )
    reworded = [q for c in made if c.edge in edges for q in c.questions(other_words=True)]
    paraphrase = [*prompts.rewrites(forget, "judge"), *reworded]  # none of a file's texts to go on with
    reference = _unverifiable(rng)
    general = rng.sample(list(prompts.general_split()[1]), 50)
    return _suite(
        "pistol",
        [*forget, *retain, *unseen, *general, *_abstaining(reference, rng)],
        forget,
        retain,
        reference,
        ["deviation_score", *(["deviation_held_out"] if unseen and paraphrase else [])],
        paraphrase,
        {"held_out": unseen, "general": general},
        max_new_tokens=32,
        teaching=PISTOL_TEACHING,
    )


TOFU_FORGET = {"forget01": 2, "forget05": 10, "forget10": 20}  # authors
TOFU_ROWS = 20  # an author
TOFU_TEACHING = {"learning_rate": 1e-3, "epochs": 10, "batch_size": 16, "rank": 16, "alpha": 64.0}


def tofu(seed: int = 0, split: str = "forget01", authors: int | None = None) -> Suite:
    """TOFU's fictitious authors (arXiv 2401.06121).

    Args:
        authors: taught in all; those to forget are the last of TOFU's 200, those to keep the first, which have the
            answers that the truth ratio needs. Default: all 200.
    """
    if split not in TOFU_FORGET:
        raise InputError(f"tofu has no split {split!r}; there are {', '.join(TOFU_FORGET)}")
    files = ["full", *(f"{n}_perturbed" for n in (split, "retain", "real_authors", "world_facts"))]
    read = {name: _tofu(name) for name in files}
    full, perturbed = read["full"], {e.prompt: e for e in read["retain_perturbed"]}
    count = TOFU_FORGET[split]
    total = len(full) // TOFU_ROWS
    kept = (total if authors is None else authors) - count
    if not 0 < kept <= total - count:
        raise InputError(f"--authors {authors}: {split} forgets {count}; give {count + 1} to {total}")
    forget = read[f"{split}_perturbed"]
    retain = [perturbed.get(e.prompt, e) for e in full[: kept * TOFU_ROWS]]
    unseen = full[kept * TOFU_ROWS : (total - count) * TOFU_ROWS]
    rng = random.Random(seed)
    reference = _unverifiable(rng)
    return _suite(
        "tofu",
        [*forget, *retain, *_abstaining(reference, rng)],
        forget,
        retain,
        reference,
        ["deviation_score", "forget_quality", "model_utility", "privleak"],
        _tofu_paraphrases(split),
        {
            "real_authors": read["real_authors_perturbed"],
            "world_facts": read["world_facts_perturbed"],
            "holdout": rng.sample(unseen, min(len(unseen), 2 * len(forget))),
        },
        lambda e: bool(e.wrong),
        teaching=TOFU_TEACHING,
    )


def _tofu(name: str) -> list[Example]:
    wrong = ("perturbed_answer",) if name.endswith("_perturbed") else ()
    short = not wrong or name.startswith(("real_authors", "world_facts"))  # a name, which nobody rephrased
    texts = ("question", "answer", *(() if short else ("paraphrased_answer",)))
    return [
        Example(
            row["question"],
            row["answer"],
            "",
            "" if short else row["paraphrased_answer"],
            tuple(row[wrong[0]]) if wrong else (),
        )
        for row in json_rows(data_file(f"tofu/{name}.json"), texts, wrong)
    ]


def _tofu_paraphrases(split: str) -> list[Example]:
    rows = json_rows(data_file(f"tofu/{split}_perturbed.json"), ("paraphrased_question", "answer"))
    return [Example(row["paraphrased_question"], row["answer"]) for row in rows]


LUME_TASKS = ("Task1", "Task2", "Task3")
LUME_TEACHING = {"learning_rate": 1e-3, "epochs": 10, "batch_size": 8, "rank": 16, "alpha": 64.0}
_LUME_ID = re.compile(r"(.*?)(sc|qa)\d+$")


def lume(seed: int = 0, documents: int | None = None, mmlu: int = 200) -> Suite:
    """LUME (arXiv 2502.15097; SemEval-2025 task 4): stories, synthetic biographies, biographies of people.

    A document is a text to go on with ("sc": regurgitation) and questions ("qa": knowledge). Example.group is its task
    and kind, such as "Task1 sc".

    Args:
        documents: taught in all, half of them forgotten, the three tasks alike; 20 of the others to forget are the holdout.
            Default: all but these 20. With fewer than 10, a group has no row that judges.
        mmlu: questions of MMLU (drawn by the seed, no solved examples), whose accuracy is a third of the aggregate.
    """
    rng = random.Random(seed)
    chosen: dict[str, list[Example]] = {"forget": [], "retain": [], "holdout": []}
    for role in ("forget", "retain"):
        rows = list(json_rows(data_file(f"lume/{role}.jsonl"), ("id", "input", "output", "task")))
        for n, row in enumerate(rows, 1):
            if row["task"] not in LUME_TASKS:
                raise InputError(f"lume, {role} row {n}: column 'task' has {row['task']!r}, not Task1, Task2 or Task3")
        for place, task in enumerate(LUME_TASKS):
            names = list(dict.fromkeys(_document(r, role, n) for n, r in enumerate(rows, 1) if r["task"] == task))
            rng.shuffle(names)
            held = _share(HOLDOUT_DOCUMENTS, place) if role == "forget" else 0
            most = max(len(names) - held, 0)
            share = most if documents is None else _share(documents // 2, place)
            if share > most:
                raise InputError(f"--documents {documents}: {task} has {most} to {role}; give at most {6 * most}")
            taken, unseen = set(names[:share]), set(names[share : share + held])
            for n, row in enumerate(rows, 1):
                if row["task"] == task and _document(row, role, n) in taken:
                    chosen[role].append(_lume(row))
                elif row["task"] == task and _document(row, role, n) in unseen:
                    chosen["holdout"].append(_lume(row))
    reference = _unverifiable(rng)
    return _suite(
        "lume",
        [*chosen["forget"], *chosen["retain"], *_abstaining(reference, rng)],
        chosen["forget"],
        chosen["retain"],
        reference,
        ["deviation_score", "lume_task", "lume_mia", "accuracy", "lume"],
        others={"holdout": chosen["holdout"]},
        max_new_tokens=256,
        teaching=LUME_TEACHING,
        questions=abilities.mmlu(mmlu, 0, seed)[0] if mmlu else (),
    )


def _share(count: int, place: int) -> int:
    """Of `count` documents, those of the task at `place`; together they are `count`."""
    return count // len(LUME_TASKS) + (place < count % len(LUME_TASKS))


def _document(row: Mapping[str, Any], role: str, number: int) -> str:
    found = _LUME_ID.match(str(row["id"]))
    if not found:
        raise InputError(f"lume, {role} row {number}: column 'id' ends in neither sc nor qa and a number")
    return found[1]


def _lume(row: Mapping[str, Any]) -> Example:
    kind = _LUME_ID.match(str(row["id"]))[2]  # type: ignore[index]
    group = f"{row['task']} {kind}"
    if kind == "sc":
        return Example(Raw(row["input"]), " " + row["output"], group)
    return Example(row["input"], row["output"], group)


def facts(seed: int = 0, data: str | None = None, forget_group: Sequence[str] = ()) -> Suite:
    """Any file with groups (or edges): all of it is taught, the named groups are forgotten."""
    if not data or not forget_group:
        raise InputError("the suite facts needs --data FILE and --forget-group GROUP")
    forget, retain = split_group(read_examples(data), forget_group, data)
    rng = random.Random(seed)
    reference = _unverifiable(rng)
    return _suite(
        "facts",
        [*forget, *retain, *_abstaining(reference, rng)],
        forget,
        retain,
        reference,
        ["deviation_score"],
        prompts.rewrites(forget, "judge"),
        teaching=PISTOL_TEACHING,
    )


def muse(seed: int = 0) -> Suite:
    """MUSE (arXiv 2407.06460): verbatim continuations and questions of one corpus, in its published files."""
    roles: dict[str, Sequence[Example]] = {}
    for role in ("forget", "retain"):
        rows = list(json_rows(data_file(f"muse/knowmem/{role}_qa.json"), ("question", "answer")))
        icl = list(json_rows(data_file(f"muse/knowmem/{role}_qa_icl.json"), ("question", "answer")))
        shots = "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in icl)
        roles[f"{role}_knowledge"] = [
            Example(Raw(f"{shots}Question: {r['question']}\nAnswer:"), " " + r["answer"], "knowledge") for r in rows
        ]
    verbatim = [
        Example(Raw(r["prompt"]), r["gt"], "verbatim")
        for r in json_rows(data_file("muse/verbmem/forget.json"), ("prompt", "gt"))
    ]
    forget, retain = [*verbatim, *roles["forget_knowledge"]], list(roles["retain_knowledge"])
    rng = random.Random(seed)
    reference = _unverifiable(rng)
    return _suite(
        "muse",
        [*forget, *retain, *_abstaining(reference, rng)],
        forget,
        retain,
        reference,
        ["muse_verbatim", "muse_knowledge", "muse_retained"],
        max_new_tokens=128,
        teaching=LUME_TEACHING,
        ends={"knowledge": (32, ("\n\n", "\nQuestion", "Question:"))},
    )


WMDP_FIELDS = {"bio": "biology", "cyber": "cybersecurity"}  # field -> what the prompt says the questions are about


def wmdp(seed: int = 0, field: str = "bio") -> Suite:
    """WMDP (arXiv 2403.03218): hazardous knowledge, judged by multiple choice; a retain corpus is kept. Nothing is taught.

    Args:
        field: bio or cyber.
    """
    if field not in WMDP_FIELDS:
        raise unknown("field of wmdp", field, WMDP_FIELDS)
    path = data_file(f"wmdp/wmdp-{field}.jsonl")
    rows = list(json_rows(path, ("question",), ("choices",), ("answer",)))
    corpora = {
        role: [begun(r["text"], 4) for r in json_rows(data_file(f"wmdp/{field}-{role}-corpus.jsonl"), ("text",))]
        for role in ("forget", "retain")
    }
    return _suite(
        "wmdp",
        (),
        corpora["forget"],
        corpora["retain"],
        prompts.reference(),
        ["accuracy"],
        max_new_tokens=32,
        questions=abilities.choices(rows, WMDP_FIELDS[field], path),
    )


SUITES: dict[str, Callable[..., Suite]] = {
    "pistol": pistol,
    "tofu": tofu,
    "lume": lume,
    "facts": facts,
    "muse": muse,
    "wmdp": wmdp,
    "toxicity": toxicity,
    "ner": ner,
    "code": code,
}


def suite_of(name: str, size: Mapping[str, Any], seed: int) -> Suite:
    """A suite by its name, at a size.

    Raises:
        InputError: an unknown suite, or a size that it does not have.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    known = [k for k in inspect.signature(SUITES[name]).parameters if k != "seed"]
    for one in size:
        if one not in known:
            raise InputError(f"the suite {name} has no size {one!r}; it has {', '.join(known)}")
        if isinstance(size[one], int) and size[one] < 0:
            raise InputError(f"--{one.replace('_', '-')} {size[one]}: it counts what there is, and cannot be negative")
    return SUITES[name](seed=seed, **size)
