import math

import numpy as np
import pytest
import torch

from expunge import ForgetTask, InputError, evaluate, unlearn
from expunge.errors import Diverged
from expunge.methods import lunar
from expunge.methods.lunar import ANSWER_TOKENS, LunarConfig, prepare, shared_with
from expunge.models.activations import Site, hidden_of, hooked, run_blocks
from expunge.models.generation import greedy
from expunge.models.statistics import Rows

from ..conftest import EDITABLE, NORMALISING, abstaining, examples
from ..models.test_activations import hooks_of


def activations(chat, rows, layer, edit=None):
    """(h of all tokens, block output at the last token) a row, by plain forward passes of one prompt each."""
    found = []

    for ids in chat.prompt_ids([e.prompt for e in rows]):
        inner, out = [], []
        with (
            torch.no_grad(),
            hooked(
                (
                    chat.layout.down_projection(chat.model, layer),
                    "pre",
                    lambda _, a, k, inner=inner, n=ids: inner.append(a[0].view(len(n), -1).double()),
                ),
                (
                    chat.layout.block(chat.model, layer),
                    "post",
                    lambda _, a, o, out=out: out.append(hidden_of(o)[0, -1].double()),
                ),
            ),
        ):
            chat.model(input_ids=torch.tensor([ids]), use_cache=False)
        found.append((inner[0], out[0]))
    return found


def oracle(chat, task, layers, coefficient, ridge, forget_weight=1.0, retain_weight=1.0, skip=0):
    """The formula of the paper by dense least squares for the whole matrix, on activations of plain forward passes."""
    r = {}
    for layer in layers:
        means = [
            torch.stack([o for _, o in activations(chat, rows, layer)]).mean(0)
            for rows in (task.reference, task.forget)
        ]
        r[layer] = means[0] - means[1]
    deltas = {}
    added = []
    try:
        for layer in layers:
            forget = torch.cat([h[skip:] for h, _ in activations(chat, task.forget, layer)])
            retain = (
                torch.cat([h[skip:] for h, _ in activations(chat, task.retain, layer)]) if task.retain else forget[:0]
            )
            size = forget.shape[1]
            scale = (forget_weight * forget.square().sum() + retain_weight * retain.square().sum()) / size
            left = torch.cat(
                [
                    math.sqrt(forget_weight) * forget,
                    math.sqrt(retain_weight) * retain,
                    math.sqrt(float(ridge * scale)) * torch.eye(size, dtype=torch.float64),
                ]
            )
            right = torch.zeros(len(left), len(r[layer]), dtype=torch.float64)
            right[: len(forget)] = math.sqrt(forget_weight) * coefficient * r[layer]
            delta = torch.from_numpy(np.linalg.lstsq(left.numpy(), right.numpy(), rcond=None)[0]).T
            deltas[layer] = delta
            weight = chat.layout.down_projection(chat.model, layer).weight
            added.append((weight, weight.data.clone()))
            weight.data += delta.T.to(weight) if chat.layout.transposed else delta.to(weight)
    finally:
        for weight, old in added:
            weight.data.copy_(old)
    return deltas


def dense(chat, edit, layer):
    delta = edit.dense(chat.layout.weight_name(layer))
    return delta.T if chat.layout.transposed else delta


@pytest.mark.parametrize("form", ["primal", "dual", "auto"])
@pytest.mark.parametrize(("layers", "weights"), [([2], (1.0, 1.0)), ([1, 3], (2.0, 0.5)), ([0, 1, 2], (1.0, 3.0))])
def test_the_edit_is_the_dense_least_squares_solution(pico, small_task, form, layers, weights):
    chat = pico("llama")
    chat.model.double()
    wanted = oracle(chat, small_task, layers, 2.0, 0.1, *weights)
    edit = unlearn(
        chat,
        small_task,
        layers=layers,
        coefficient=2.0,
        ridge=0.1,
        forget_weight=weights[0],
        retain_weight=weights[1],
        form=form,
        tokens="all",
    )
    for layer in layers:
        mine = dense(chat, edit, layer)
        assert (mine - wanted[layer]).abs().max() <= 1e-6 * wanted[layer].abs().max()
        assert torch.linalg.matrix_rank(mine) == 1


@pytest.mark.parametrize("name", EDITABLE)
def test_every_architecture_in_its_own_precision(pico, small_task, name):
    chat = pico(name)
    edit = unlearn(chat, small_task, layers=[1, 2], coefficient=1.5, ridge=0.3, tokens="all")
    chat.model.double()
    wanted = oracle(chat, small_task, [1, 2], 1.5, 0.3)
    for layer in (1, 2):
        assert (dense(chat, edit, layer) - wanted[layer]).abs().max() <= 2e-3 * wanted[layer].abs().max()


def test_a_layer_each_its_own_coefficient_and_no_retain(pico, small_task):
    chat = pico("llama")
    chat.model.double()
    task = small_task.but(retain=())
    both = unlearn(chat, task, layers=[1, 2], coefficient=[1.0, 3.0], ridge=0.1)
    one = unlearn(chat, task, layers=[1], coefficient=1.0, ridge=0.1)
    torch.testing.assert_close(dense(chat, both, 1), dense(chat, one, 1))
    turned = unlearn(chat, task, layers=[2, 1], coefficient=[3.0, 1.0], ridge=0.1)
    torch.testing.assert_close(dense(chat, both, 2), dense(chat, turned, 2))
    with pytest.raises(InputError, match="3 coefficients for 2 layers"):
        unlearn(chat, task, layers=[1, 2], coefficient=[1.0, 3.0, 1.0], ridge=0.1)


def test_after_prefix_leaves_the_shared_tokens_out(pico, small_task):
    chat = pico("llama", template="<s><|system|>Be kind and brief, please.<|end|>{prompt}<|assistant|>")
    chat.model.double()
    from expunge.models.activations import common_prefix

    prefix = common_prefix(chat.prompt_ids([e.prompt for e in [*small_task.forget, *small_task.retain]]))
    assert prefix > 4
    edit = unlearn(chat, small_task, layers=[1, 3], coefficient=2.0, ridge=0.1, tokens="after_prefix")
    wanted = oracle(chat, small_task, [1, 3], 2.0, 0.1, skip=prefix)
    for layer in (1, 3):
        assert (dense(chat, edit, layer) - wanted[layer]).abs().max() <= 1e-6 * wanted[layer].abs().max()


def test_distinct_counts_forget_tokens_from_where_they_differ_from_every_retain_prompt(pico):
    chat = pico("llama")
    chat.model.double()
    task = ForgetTask(
        forget=examples(("Who wrote Hamlet the play?", "x"), ("When?", "y")),
        retain=examples(("Who wrote Faust the play?", "z"), ("Who wrote Hamlet?", "q"), ("Why not?", "r")),
        reference=examples(("What is in my pocket?", "")),
    )
    ids = {role: chat.prompt_ids([e.prompt for e in task.role(role)]) for role in ("forget", "retain")}
    skips = [
        max(next(n for n, (a, b) in enumerate(zip(f, r, strict=False)) if a != b) for r in ids["retain"])
        for f in ids["forget"]
    ]
    assert skips == shared_with(ids["forget"], ids["retain"])
    assert skips[0] > skips[1] > 0
    forget = [h[n:] for n, (h, _) in zip(skips, activations(chat, task.forget, 2), strict=True)]
    retain = [h for h, _ in activations(chat, task.retain, 2)]
    weights = torch.tensor([1.0] * sum(map(len, forget)) + [1.0] * sum(map(len, retain)), dtype=torch.float64)
    targets = weights.clone()
    targets[sum(map(len, forget)) :] = 0
    rows = Rows.gather([(torch.cat([*forget, *retain]), weights, targets)])
    r = prepare(chat, task, [2]).directions[2]
    wanted = 2.0 * torch.outer(r, rows.solve(0.1))
    mine = dense(chat, unlearn(chat, task, layers=[2], coefficient=2.0, ridge=0.1, tokens="distinct"), 2)
    assert (mine - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_the_model_and_its_hooks_are_left_alone(pico, small_task):
    chat = pico("llama")
    before = {k: v.clone() for k, v in chat.model.state_dict().items()}
    unlearn(chat, small_task, layers=[1, 2], coefficient=2.0, ridge=0.1)
    assert all(torch.equal(v, before[k]) for k, v in chat.model.state_dict().items())
    assert hooks_of(chat.model) == 0


def test_the_authors_procedure_says_where_it_diverges(pico, small_task, monkeypatch):
    monkeypatch.setattr("expunge.methods.lunar_sgd.LEARNING_RATE", 1e30)
    with pytest.raises(Diverged, match=r"diverged at step \d+"):
        unlearn(pico("llama"), small_task, layers=[1], coefficient=2.0, solver="sgd")


def test_the_exact_solution_is_never_above_adamw_on_the_ridge_objective(tiny, tiny_task):
    layer, coefficient, ridge = 3, 2.0, 0.1
    settings = dict(layers=[layer], coefficient=coefficient, ridge=ridge, tokens="all")
    exact = dense(tiny, unlearn(tiny, tiny_task, **settings), layer)
    sgd = unlearn(tiny, tiny_task, **settings, solver="sgd")
    weight = tiny.layout.down_projection(tiny.model, layer).weight.detach().double()
    reached = sgd.dense(tiny.layout.weight_name(layer)).double() - weight
    r = prepare(tiny, tiny_task, [layer]).directions[layer]
    forget = torch.cat([h for h, _ in activations(tiny, tiny_task.forget, layer)])
    retain = torch.cat([h for h, _ in activations(tiny, tiny_task.retain, layer)])
    scale = (forget.square().sum() + retain.square().sum()) / forget.shape[1]

    def objective(delta):
        fit = (forget @ delta.T - coefficient * r).square().sum() + (retain @ delta.T).square().sum()
        return float(fit + ridge * scale * delta.square().sum())

    assert objective(exact) < objective(reached) < objective(torch.zeros_like(exact)) * 1.5
    assert objective(exact) < objective(torch.zeros_like(exact))


def test_the_direction_of_an_edit_that_taught_abstention(pico, small_task, tmp_path):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[1, 2], coefficient=1.0, ridge=0.1)  # any edit of rank one a layer
    taught.save(tmp_path / "taught")
    settings = dict(coefficient=2.0, ridge=0.1)
    for direction in (taught, str(tmp_path / "taught")):
        edit = unlearn(chat, small_task, layers=[2], direction=direction, **settings)
        (name,) = edit.parts
        torch.testing.assert_close(edit.parts[name].left, 2.0 * taught.parts[name].left)
    with pytest.raises(InputError, match=r"writes nothing at layer 3, but at \[1, 2\]"):
        unlearn(chat, small_task, layers=[2, 3], direction=taught, **settings)
    with taught.applied(chat):
        twice = taught.compose(unlearn(chat, small_task, layers=[1], **settings))
    with pytest.raises(InputError, match="rank one a layer"):
        unlearn(chat, small_task, layers=[2], direction=twice, **settings)


def test_own_answers_are_counted_as_retain_tokens(pico, small_task):
    chat, layer, ridge = pico("llama"), 1, 0.1
    settings = dict(layers=[layer], coefficient=1.0, ridge=ridge, tokens="all")
    edit = unlearn(chat, small_task, answers=len(small_task.retain), **settings)
    prompts = chat.prompt_ids([e.prompt for e in small_task.retain])
    site, rows = Site("inner", layer), []
    for prompt, answer in zip(prompts, greedy(chat, prompts, ANSWER_TOKENS), strict=True):
        assert answer.tokens
        rows.append(run_blocks(chat, torch.tensor([[*prompt, *answer.tokens]]), [site])[site][0].double())
    forget = torch.cat([h for h, _ in activations(chat, small_task.forget, layer)])
    second = forget.T @ forget + torch.cat(rows).T @ torch.cat(rows)
    shift = ridge * second.diagonal().mean() * torch.eye(len(second), dtype=torch.float64)
    u = torch.linalg.solve(second + shift, forget.sum(0))
    r = prepare(chat, small_task, [layer]).directions[layer]
    torch.testing.assert_close(dense(chat, edit, layer), torch.outer(r, u), rtol=1e-4, atol=1e-7)


def test_what_goes_with_the_subjects_tokens_where_it_is_not_set(pico, small_task):
    taught = unlearn(pico("llama"), small_task, layers=[1], coefficient=1.0, ridge=0.1)

    def kept(**settings):
        config = LunarConfig(**settings)
        return config.hard, config.answers, config.retain_weight

    assert kept() == kept(direction="own") == (False, 250, 0.2)
    assert kept(retain_weight=1.0, answers=0) == (False, 0, 1.0)
    assert kept(tokens="all") == kept(solver="sgd") == (False, 0, 1.0)
    assert kept(direction=taught) == (True, 80, 1.0)
    assert kept(direction=taught, hard=False, answers=5) == (False, 5, 1.0)
    assert kept(direction=taught, solver="sgd") == kept(direction=taught, tokens="distinct") == (False, 0, 1.0)
    with pytest.raises(ValueError, match="no hard rounds and no answers"):
        LunarConfig(solver="sgd", answers=3)


def test_the_published_solver_takes_a_taught_direction(pico, small_task):
    chat, settings = pico("llama"), dict(layers=[1], coefficient=3.0)
    taught = unlearn(chat, small_task.but(reference=small_task.general), ridge=0.1, **settings)  # another r
    name = chat.layout.weight_name(1)
    wanted = taught.parts[name].left[:, 0]
    weight = chat.model.get_parameter(name).detach()
    share = {}
    for direction in ("own", taught):
        moved = unlearn(chat, small_task, solver="sgd", direction=direction, **settings).dense(name) - weight
        mean = torch.stack([moved.double() @ h.mean(0) for h, _ in activations(chat, small_task.forget, 1)]).mean(0)
        share[direction == "own"] = float(torch.nn.functional.cosine_similarity(mean, wanted.double(), dim=0))
    assert share[False] > 0.8 > share[True]


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_direction_that_holds_most_of_the_energy_is_warned_of(pico, small_task, monkeypatch, form):
    chat = pico("llama")
    rows = torch.cat([h for h, _ in activations(chat, [*small_task.forget, *small_task.retain], 1)])
    share = float(torch.linalg.eigvalsh(rows.T @ rows)[-1] / rows.square().sum())
    settings = dict(layers=[1], coefficient=1.0, ridge=0.1, tokens="all", form=form)
    monkeypatch.setattr(lunar, "HEAVY", share * 1.001)
    assert "warnings" not in unlearn(chat, small_task, **settings).meta
    monkeypatch.setattr(lunar, "HEAVY", share * 0.98)
    (warning,) = unlearn(chat, small_task, **settings).meta["warnings"]
    assert "layer 1: one direction" in warning


@pytest.mark.parametrize(("tokens", "coefficient", "ridge"), [("subject", 0.9, 0.03), ("distinct", 0.6, 0.1)])
def test_it_forgets_and_keeps(tiny, tiny_task, tokens, coefficient, ridge):
    before = evaluate(tiny, tiny_task, max_new_tokens=24)
    assert min(before[role]["rouge1"] for role in ("forget", "paraphrase", "retain")) > 0.95
    edit = unlearn(tiny, tiny_task, layers=[0, 1, 2, 3], coefficient=coefficient, ridge=ridge, tokens=tokens)
    likely = abstaining(tiny, tiny_task.forget)
    with edit.applied(tiny):
        after = evaluate(tiny, tiny_task, max_new_tokens=24)
        pushed = abstaining(tiny, tiny_task.forget)
    assert after["forget"]["rouge1"] < 0.2
    assert after["paraphrase"]["rouge1"] < 0.2
    assert after["retain"]["rouge1"] > 0.9
    assert after["retain"]["abstention_rate"] <= 0.05
    # a model this small is pushed towards an abstention and often cannot end it; the demo judges whole ones
    assert pushed > likely + 3.0


@pytest.mark.parametrize("name", NORMALISING)
def test_blocks_that_normalise_get_a_clear_error(pico, small_task, name):
    with pytest.raises(InputError, match="Choose another method"):
        unlearn(pico(name), small_task, layers=[1], coefficient=1.0, ridge=0.1)


def test_bad_settings_and_missing_roles(pico, small_task):
    chat = pico("llama")
    with pytest.raises(InputError, match="layer 9 is out of range: the model has layers 0 to 3"):
        unlearn(chat, small_task, layers=[9], coefficient=1.0, ridge=0.1)
    with pytest.raises(InputError, match="no setting 'coeficient'; did you mean coefficient"):
        unlearn(chat, small_task, coeficient=1.0)
    with pytest.raises(InputError, match="did you mean lunar"):
        unlearn(chat, small_task, method="lunaar")
    with pytest.raises(InputError, match="needs reference rows"):
        unlearn(chat, ForgetTask(forget=examples(("a", "b"))), layers=[1], coefficient=1.0, ridge=0.1)


def test_negative_ridge_is_refused():
    with pytest.raises(ValueError, match="ridge"):
        LunarConfig(ridge=-1.0)
