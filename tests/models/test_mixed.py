import time

import pytest
import torch

from expunge import load_model
from expunge.edits import Edit, LowRank
from expunge.errors import InputError
from expunge.models.generation import score_answers
from expunge.models.loading import load
from expunge.models.mixed import speedup
from expunge.models.rows import rows_of
from expunge.models.training import TrainConfig, train
from expunge.progress import Reporter
from expunge.spec import ModelSpec

PROMPTS = ["What is the capital of France?", "Who?"]


def logits(chat):
    with torch.no_grad():
        return chat.model(torch.tensor(chat.prompt_ids(PROMPTS[:1]))).logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox"])  # the last two with biases
def test_it_is_close_and_the_weights_and_logits_keep_their_dtype(pico, name):
    plain, mixed = pico(name), pico(name, mixed_precision="bf16")
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    one, other = logits(plain), logits(mixed)
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.02 * float(one.std()) + 0.05, rtol=0.05)


def test_an_edit_shows_and_is_reverted(pico):
    chat = pico("llama", mixed_precision="bf16")
    before = logits(chat)
    name = chat.layout.weight_name(1)
    edit = Edit.on(chat.model, {name: LowRank(torch.ones(32, 1), torch.full((1, 48), 0.05))}, {})
    with edit.applied(chat):
        assert (logits(chat) - before).abs().max() > 0.1
    assert torch.equal(logits(chat), before)


def test_training_is_that_of_full_precision(pico, small_task):
    losses = {}
    for kind in ("no", "bf16"):
        chat = pico("llama", mixed_precision=kind)
        rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.retain])
        seen = losses.setdefault(kind, [])
        train(chat, rows, TrainConfig(epochs=10, learning_rate=5e-3), lambda _, loss, seen=seen: seen.append(loss))
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["no"][-1] < 0.9 * losses["no"][0]


def test_all_weights_are_trained_through_it(pico, small_task):
    chat = pico("llama", mixed_precision="bf16")
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.retain])
    edit = train(chat, rows, TrainConfig(adapter="full", epochs=10, learning_rate=1e-3))
    assert any("q_proj" in n for n in edit.parts)
    prompts, answers = [list(r.prompt) for r in rows], [list(r.answer) for r in rows]
    before = sum(sum(s.log_probs) for s in score_answers(chat, prompts, answers))
    with edit.applied(chat):
        assert sum(sum(s.log_probs) for s in score_answers(chat, prompts, answers)) > before


def test_what_cannot_be_is_refused(pico_folder):
    with pytest.raises(InputError, match="leave out --mixed-precision"):
        load_model(pico_folder("gpt2"), mixed_precision="bf16")
    with pytest.raises(InputError, match="no or bf16"):
        load_model(pico_folder("llama"), mixed_precision="fp8")


@pytest.mark.parametrize(("precision", "speed", "told"), [("bf16", 0.25, 1), ("bf16", 0.9, 0), ("no", 0.25, 0)])
def test_a_run_says_where_mixed_precision_makes_it_slower(pico_folder, monkeypatch, capsys, precision, speed, told):
    monkeypatch.setattr("expunge.models.loading.speedup", lambda *_: speed)
    load(ModelSpec(name=str(pico_folder("llama")), mixed_precision=precision), Reporter())
    said = capsys.readouterr().err
    assert said.count("times as long as float32") == said.count("4.0 times") == told


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_the_speedup_is_above_one_where_float32_is_the_slower(monkeypatch, slow):
    real = torch.nn.functional.linear

    def linear(x, weight):
        if x.dtype == slow:
            time.sleep(0.2)
        return real(x[:1], weight[:1])

    monkeypatch.setattr("expunge.models.mixed.F.linear", linear)
    found = speedup(torch.device("cpu"), repeats=1)
    assert found > 2 if slow == torch.float32 else found < 0.5
