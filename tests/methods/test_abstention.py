import pytest
import torch

from expunge import ForgetTask, InputError, evaluate, probe_abstention, teach_abstention
from expunge.methods import abstention
from expunge.methods.abstention import AbstentionConfig, common_suffix, train_vectors
from expunge.methods.lunar import ANSWER_TOKENS, exact
from expunge.models.generation import continued

from ..conftest import FACTS, FORGET, RETAIN, UNKNOWN, abstaining
from ..models.test_activations import hooks_of

QUICK = AbstentionConfig(steps=3, batch_size=4)


def test_the_probe_tells_who_abstains(tiny):
    assert probe_abstention(tiny, UNKNOWN, rows=12) > 0.7
    assert probe_abstention(tiny, FACTS, rows=12) == 0.0


def test_teaching_is_an_edit_of_rank_one_and_leaves_the_model_alone(pico):
    chat = pico("llama")
    before = {k: v.clone() for k, v in chat.model.state_dict().items()}
    flags = {k: p.requires_grad for k, p in chat.model.named_parameters()}
    steps = []
    edit = teach_abstention(chat, UNKNOWN[:6], FACTS[:8], QUICK, steps.append)
    assert steps == [1, 1, 1]
    assert edit.rank == 1
    assert list(edit.parts) == ["model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    assert all(torch.equal(v, before[k]) for k, v in chat.model.state_dict().items())
    assert flags == {k: p.requires_grad for k, p in chat.model.named_parameters()}
    assert all(p.grad is None for p in chat.model.parameters())
    assert hooks_of(chat.model) == 0


def test_what_is_taught_moves_its_prompts_and_not_the_others(tiny):
    """With the roles turned: the tiny model learns to abstain on facts that it knows, and keeps other facts."""
    taught, kept = FORGET, RETAIN
    settings = AbstentionConfig(layers=(0, 1, 2, 3, 4), coefficient=2.0, steps=90, size=2.0)
    likely = abstaining(tiny, taught)
    edit = teach_abstention(tiny, taught, [*kept, *UNKNOWN], settings)
    with edit.applied(tiny):
        assert abstaining(tiny, taught) > likely + 2.0
        assert evaluate(tiny, ForgetTask(general=kept), max_new_tokens=24)["general"]["rouge1"] >= 0.9


def test_the_vectors_stay_within_the_size_that_is_set(pico):
    """Of all layers together, relative to the residual stream's norm at each."""
    chat, sizes = pico("llama"), {0: 2.0, 1: 5.0}
    prompts = chat.prompt_ids([e.prompt for e in FACTS[:8]])

    def norm(limit):
        settings = QUICK.model_copy(update={"size": limit, "learning_rate": 1.0, "steps": 8})
        found = train_vectors(chat, prompts, 1, sizes, settings)
        return sum((float(v.norm()) / sizes[n]) ** 2 for n, v in found.items()) ** 0.5

    assert norm(0.2) == pytest.approx(0.2, rel=1e-4)
    assert norm(100.0) > 0.3  # it is the limit that held them


def test_own_answers_to_what_is_kept_count_in_the_solve(pico, monkeypatch):
    chat, taken = pico("llama"), {}

    def looked(target, answers):
        taken[answers] = sum(int(b.mask.sum()) for b in target.retain.batches)

    for answers in (0, 4):
        with monkeypatch.context() as patch:
            patch.setattr(abstention, "exact", lambda c, target, s, n=answers: looked(target, n) or exact(c, target, s))
            teach_abstention(chat, UNKNOWN[:6], FACTS[:8], QUICK.model_copy(update={"answers": answers}))
    kept = chat.prompt_ids([e.prompt for e in FACTS[:8]])
    longer = sum(map(len, continued(chat, kept, 4, ANSWER_TOKENS, QUICK.seed))) - sum(map(len, kept))
    assert taken[4] - taken[0] == longer > 0


def test_the_same_seed_teaches_the_same(pico):
    a, b = (teach_abstention(pico("llama"), UNKNOWN[:4], FACTS[:4], QUICK) for _ in range(2))
    name = next(iter(a.parts))
    assert torch.equal(a.dense(name), b.dense(name))


def test_without_reference_prompts_there_is_nothing_to_teach(pico):
    with pytest.raises(InputError, match="needs reference prompts"):
        teach_abstention(pico("llama"), [], FACTS[:4], QUICK)


def test_common_suffix():
    assert common_suffix([[1, 2, 8, 9], [3, 8, 9], [8, 8, 9]]) == 2
    assert common_suffix([[1, 2], [3, 4]]) == 1
    assert common_suffix([[5, 6], [5, 6]]) == 2
