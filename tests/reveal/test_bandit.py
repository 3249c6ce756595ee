from __future__ import annotations

import random

import pytest
import torch

from expunge.reveal.bandit import BanditConfig, NeuralUCB


def features(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_the_bonus_is_that_of_one_gradient_at_a_time():
    config = BanditConfig(hidden=5, steps=30, regularisation=0.2, exploration=0.7)
    bandit = NeuralUCB(6, config)
    seen = features(8)
    scores = torch.arange(8) / 8
    bandit.fit(seen, scores.tolist())
    bandit.tried(seen[:3])
    others = features(4, seed=1)
    found = bandit.ucb(others)

    standard = (others - seen.mean(0)) / seen.std(0, correction=0)
    before = torch.full_like(bandit.uncertainty, 0.2)
    grads = []
    for row in torch.cat([(seen[:3] - seen.mean(0)) / seen.std(0, correction=0), standard]):
        bandit._net.zero_grad()
        bandit._net(row).backward()
        grads.append(torch.cat([p.grad.flatten() for p in bandit._net.parameters()]))
    grads = [g / 5**0.5 for g in grads]  # over the root of the width
    u = before + sum(g.square() for g in grads[:3])
    unit = float(scores.std(correction=0))
    expected = [
        float(
            scores.mean()
            + unit * ((bandit._net(x) - bandit._start(x)).detach() + (0.2 * 0.7 * g.square() / u).sum().sqrt())
        )
        for x, g in zip(standard, grads[3:], strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_what_was_tried_is_less_uncertain_and_every_fit_starts_anew():
    bandit = NeuralUCB(6, BanditConfig(hidden=8, steps=50))
    seen, scores = features(5), [0.1, 0.5, 0.2, 0.9, 0.4]
    bandit.fit(seen, scores)
    before = bandit.ucb(seen)
    bandit.tried(seen[:1])
    after = bandit.ucb(seen)
    assert after[0] < before[0]
    assert (after <= before + 1e-6).all()
    weights = [p.clone() for p in bandit._net.parameters()]
    bandit.fit(features(5, seed=3), scores)
    bandit.fit(seen, scores)
    assert all(torch.equal(a, b) for a, b in zip(weights, bandit._net.parameters(), strict=True))


def test_the_surrogate_begins_at_the_mean_and_is_held_there_by_the_decay():
    """No random network's own outputs, and the less fit to noise the more decay."""
    seen, others = features(40, 40), features(40, 40, seed=1)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.4

    def said(**given) -> torch.Tensor:
        bandit = NeuralUCB(40, BanditConfig(exploration=0.0, **given))
        bandit.fit(seen, noise.tolist())
        return bandit.ucb(others)

    assert said(steps=0).tolist() == pytest.approx([float(noise.mean())] * 40)
    assert said(decay=1000.0).std() < 0.1 * said(decay=0.0).std()


def test_what_a_score_depends_on_is_learned_from_few():
    bandit, seen, others = NeuralUCB(40, BanditConfig(exploration=0.0)), features(40, 40), features(40, 40, seed=1)
    direction = torch.randn(40, generator=torch.Generator().manual_seed(3))
    truth, told = (torch.sigmoid((x - 1) @ direction / 20) for x in (others, seen))
    noise = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 0.03
    bandit.fit(seen, (told + noise).tolist())
    assert float(torch.corrcoef(torch.stack([bandit.ucb(others), truth]))[0, 1]) > 0.6


def test_it_finds_better_arms_than_chance_does():
    ours, chance = [], []
    for seed in range(3):
        arms = features(300, 12, seed)
        direction = torch.randn(12, generator=torch.Generator().manual_seed(seed + 50))
        scores = torch.sigmoid((arms @ direction) / 10)
        order = list(range(300))
        random.Random(seed).shuffle(order)
        bandit, tried = NeuralUCB(12, BanditConfig(hidden=20, steps=100), seed), order[:10]
        bandit.fit(arms[tried], scores[tried].tolist())
        bandit.tried(arms[tried])
        while len(tried) < 30:
            left = [n for n in order if n not in tried]
            pick = left[int(bandit.ucb(arms[left]).argmax())]
            bandit.tried(arms[pick : pick + 1])
            tried.append(pick)
            bandit.fit(arms[tried], scores[tried].tolist())
        ours.append(scores[tried].topk(5).values.mean())
        chance.append(scores[order[:30]].topk(5).values.mean())
    assert sum(ours) > sum(chance)
    assert all(a > b - 0.02 for a, b in zip(ours, chance, strict=True))
