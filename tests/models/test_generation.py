import pytest
import torch

from expunge.data.examples import Cut, Raw
from expunge.models.generation import Generated, _ranks, continued, drawn_at, greedy, sampled, score_answers

from ..conftest import ARCHITECTURES

PROMPTS = [
    "What is the capital of France?",
    "Who?",
    "Name the largest planet, and say how many moons it has.",
    "Is it so?",
]
ANSWERS = ["Paris", "Nobody at all", "Jupiter", "Yes"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batched_greedy_is_what_generate_gives_one_at_a_time(pico, name, batch_size):
    chat = pico(name)
    ids = [[1] * 5 + i for i in chat.prompt_ids(PROMPTS)]
    mine = greedy(chat, ids, 12, batch_size=batch_size)
    for prompt, answer in zip(ids, mine, strict=True):
        with torch.no_grad():
            out = chat.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        new = out[0][len(prompt) :].tolist()
        if new[-1] in chat.stop_ids:
            assert answer.ended
            new = new[:-1]
        assert list(answer.tokens) == new


def test_rows_that_end_leave_the_others_as_they_are(tiny, tiny_task):
    prompts = tiny.prompt_ids([e.prompt for e in [*tiny_task.retain, *tiny_task.reference]])
    together = greedy(tiny, prompts, 24)
    alone = [greedy(tiny, [p], 24)[0] for p in prompts]
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({len(a.tokens) for a in together}) > 2


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_prompt_that_stands_several_times_runs_once(pico, name, monkeypatch):
    chat = pico(name)
    ids = [[1] * 5 + i for i in chat.prompt_ids(PROMPTS)]
    many = [ids[n] for n in (2, 0, 2, 1, 1, 2, 3)]
    answers = [chat.answer_ids(ANSWERS)[n] for n in (2, 0, 1, 1, 3, 2, 3)]
    alone = [greedy(chat, [p], 8, [a])[0] for p, a in zip(many, answers, strict=True)]
    rows, real = [], chat.model.forward
    monkeypatch.setattr(chat.model, "forward", lambda **k: rows.append(k["input_ids"].shape[0]) or real(**k))
    together = greedy(chat, many, 8, answers)
    assert [(a.tokens, a.ranks) for a in together] == [(a.tokens, a.ranks) for a in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.scored.log_probs == pytest.approx(other.scored.log_probs, abs=1e-4)
    assert 4 in rows[:2]  # the prompts, after their shared prefix
    assert len({g.tokens for g in sampled(chat, [ids[0]] * 6, 8, seed=1)}) > 1


def test_tokens_are_drawn_by_their_probability():
    chances = torch.tensor([[0.1, 0.2, 0.0, 0.6, 0.1], [0.0, 0.0, 1.0, 0.0, 0.0]])
    logits = chances.log().repeat(20_000, 1)
    numbers = torch.rand(len(logits), generator=torch.Generator().manual_seed(0))
    found = drawn_at(logits, 1.0, numbers)
    shares = torch.bincount(found[::2], minlength=5) / 20_000
    torch.testing.assert_close(shares, chances[0], atol=0.01, rtol=0)
    assert shares[2] == 0
    assert (found[1::2] == 2).all()
    sharper = drawn_at(logits, 0.5, numbers)[::2]
    assert (sharper == 3).float().mean() == pytest.approx(0.36 / (0.01 + 0.04 + 0.36 + 0.01), abs=0.01)


def test_sampled_rows_get_numbers_in_their_order_as_rows_end(tiny, tiny_task):
    """The oracle runs every row whole at each step, and takes numbers for the rows that have not ended, in their order."""
    ids = [[1] * 5 + p for p in tiny.prompt_ids([e.prompt for e in [*tiny_task.retain, *tiny_task.reference]])]
    ids.sort(key=len, reverse=True)
    generator = torch.Generator().manual_seed(3)
    texts, alive = [list(p) for p in ids], list(range(len(ids)))
    lengths = []
    for _ in range(24):
        with torch.no_grad():
            logits = torch.cat([tiny.model(torch.tensor([texts[n]])).logits[:, -1] for n in alive])
        tokens = drawn_at(logits, 0.7, torch.rand(len(alive), generator=generator)).tolist()
        drawn = dict(zip(alive, tokens, strict=True))
        alive = [n for n in alive if drawn[n] not in tiny.stop_ids]
        lengths.append(len(alive))
        for n in alive:
            texts[n].append(drawn[n])
        if not alive:
            break
    assert len(set(lengths)) > 3  # rows end at different steps
    found = sampled(tiny, ids, 24, temperature=0.7, seed=3)
    assert [p + list(g.tokens) for p, g in zip(ids, found, strict=True)] == texts


def test_continued_prompts_end_with_the_models_own_answer(tiny, tiny_task):
    prompts = tiny.prompt_ids([e.prompt for e in tiny_task.retain])
    own = [[*p, *a.tokens] for p, a in zip(prompts, greedy(tiny, prompts, 24), strict=True)]
    found = continued(tiny, prompts, 5, 24, seed=1)
    longer = [n for n, (f, p) in enumerate(zip(found, prompts, strict=True)) if f != p]
    assert len(longer) == 5
    assert all(found[n] == own[n] for n in longer)
    assert found == continued(tiny, prompts, 5, 24, seed=1) != continued(tiny, prompts, 5, 24, seed=2)
    assert continued(tiny, prompts, 99, 24) == own
    assert continued(tiny, prompts, 0, 24) == prompts


def test_ranks_are_those_of_the_generation_steps(pico):
    chat = pico("llama")
    prompts = chat.prompt_ids(PROMPTS)
    targets = [a[:-1] for a in chat.answer_ids(ANSWERS)]
    for prompt, target, answer in zip(prompts, targets, greedy(chat, prompts, 6, targets), strict=True):
        steps = min(len(target), 6, len(answer.tokens) + answer.ended)
        assert len(answer.ranks) == steps
        for step in range(steps):
            context = torch.tensor([[*prompt, *answer.tokens[:step]]])
            with torch.no_grad():
                logits = chat.model(context).logits[0, -1]
            assert answer.ranks[step] == int((logits > logits[target[step]]).sum()) + 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_teacher_forced_scores_are_those_of_full_logits(pico, name):
    chat = pico(name)
    prompts = [[1] * 5 + i for i in chat.prompt_ids(PROMPTS)]
    answers = chat.answer_ids(ANSWERS)
    for prompt, answer, scored in zip(
        prompts, answers, score_answers(chat, prompts, answers, batch_size=3), strict=True
    ):
        with torch.no_grad():
            logits = chat.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        at = len(prompt) - 1
        wanted = [logits[at + n, token].item() for n, token in enumerate(answer)]
        assert scored.log_probs == pytest.approx(wanted, abs=2e-4)
        assert len(scored.ranks) == len(answer)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_on_the_way_are_those_of_teacher_forcing_alone(pico, name, batch_size):
    chat = pico(name)
    prompts = [[1] * 5 + i for i in chat.prompt_ids(PROMPTS)]
    answers = chat.answer_ids(ANSWERS)
    wanted = score_answers(chat, prompts, answers)
    plain = greedy(chat, prompts, 6)
    for answer, alone, score in zip(greedy(chat, prompts, 6, answers, batch_size), plain, wanted, strict=True):
        assert answer.tokens == alone.tokens
        assert answer.scored.log_probs == pytest.approx(score.log_probs, abs=2e-4)
        assert answer.scored.ranks == score.ranks


def test_an_answer_as_a_row_has_it():
    whole, cut = (Generated("a dog", (1,), ended) for ended in (True, False))
    assert whole.response("What is it?") == "a dog"
    assert whole.response(Raw("It is")) == " a dog"
    assert Generated("", (), True).response(Raw("It is")) == ""
    assert [isinstance(g.response(p), Cut) for g in (whole, cut) for p in ("What?", Raw("It is"))] == [
        False, False, True, True,
    ]  # fmt: skip


def test_rank_1_is_the_argmax_and_a_broken_logit_is_the_last():
    nan, inf = float("nan"), float("inf")
    for logits, ranks in (
        ([3.0, 1.0, 2.0, 0.0], [1, 3, 2, 4]),
        ([1.0, 2.0, 2.0, 1.0], [3, 1, 2, 4]),  # of equal ones the first is ahead
        ([nan] * 4, [4] * 4),
        ([1.0, nan, 0.0, -inf], [2, 4, 3, 4]),
        ([1.0, inf, 0.0, 2.0], [3, 4, 4, 2]),
    ):
        given = torch.tensor(logits)
        assert _ranks(given.repeat(4, 1), torch.arange(4)).tolist() == ranks
        if 1 in ranks:
            assert ranks.index(1) == int(given.argmax())
