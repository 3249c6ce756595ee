import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import ExpungeError
from expunge.models.statistics import Moments, Rows, solve_ridge


def dense_least_squares(inputs, weights, targets, ridge, scale):
    """u by an ordinary least-squares solver on the stacked system: sqrt(w) h . u = t / sqrt(w), sqrt(ridge s) u = 0."""
    root = np.sqrt(weights)
    size = inputs.shape[1]
    top = np.concatenate([inputs * root[:, None], np.sqrt(ridge * scale) * np.eye(size)])
    right = np.concatenate([targets / root, np.zeros(size)])
    return np.linalg.lstsq(top, right, rcond=None)[0]


def problem(n, p, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, p)) * rng.uniform(0.1, 3, size=p)
    forget = rng.uniform(size=n) < 0.4
    weights = np.where(forget, 2.0, 0.5)
    return inputs, weights, np.where(forget, 2.0, 0.0)


@given(n=st.integers(2, 30), p=st.integers(1, 20), seed=st.integers(0, 10**6), ridge=st.sampled_from([1e-3, 0.1, 3.0]))
@settings(max_examples=40, deadline=None)
def test_primal_and_dual_are_the_dense_least_squares_solution(n, p, seed, ridge):
    inputs, weights, targets = problem(n, p, seed)
    scale = (inputs**2 * weights[:, None]).sum() / p
    wanted = dense_least_squares(inputs, weights, targets, ridge, scale)
    tensors = [torch.from_numpy(x) for x in (inputs, weights, targets)]
    moments = Moments(p)
    for part in zip(*(t.split(7) for t in tensors), strict=True):
        moments.add(*part)
    rows = Rows.gather([tuple(t[:3] for t in tensors), tuple(t[3:] for t in tensors)])
    assert moments.scale == pytest.approx(scale)
    assert rows.scale == pytest.approx(scale)
    tolerance = 1e-6 * max(np.abs(wanted).max(), 1e-12)
    np.testing.assert_allclose(moments.solve(ridge).numpy(), wanted, atol=tolerance)
    np.testing.assert_allclose(rows.solve(ridge).numpy(), wanted, atol=tolerance)


@given(arrays.arrays(np.float64, (9, 4), elements=st.floats(-5, 5)), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_sums_add_up_over_batches(values, cut):
    h = torch.from_numpy(values)
    ones = torch.ones(9, dtype=torch.float64)
    whole, first, second = Moments(4), Moments(4), Moments(4)
    whole.add(h, ones, ones)
    first.add(h[:cut], ones[:cut], ones[:cut])
    second.add(h[cut:], ones[cut:], ones[cut:])
    first += second
    torch.testing.assert_close(first.second, whole.second)
    torch.testing.assert_close(first.first, whole.first)
    assert first.tokens == whole.tokens


@pytest.mark.parametrize("p", [1, 3, 4, 5, 10])
def test_the_second_moment_is_the_whole_symmetric_product(p):
    h, weights = torch.randn(6, p, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    moments = Moments(p)
    moments.add(h, weights, weights)
    torch.testing.assert_close(moments.second, h.T @ (weights[:, None] * h))


def test_memory_does_not_grow_with_the_tokens():
    moments = Moments(8)
    for _ in range(50):
        moments.add(torch.randn(100, 8), torch.ones(100), torch.ones(100))
    assert moments.second.shape == (8, 8)
    assert moments.first.shape == (8,)


def test_weight_zero_leaves_a_token_out():
    a, b = Moments(3), Moments(3)
    h = torch.randn(6, 3)
    a.add(h, torch.tensor([1.0, 1, 0, 0, 2, 2]), torch.tensor([1.0, 1, 0, 0, 0, 0]))
    b.add(h[[0, 1, 4, 5]], torch.tensor([1.0, 1, 2, 2]), torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(a.second, b.second)
    torch.testing.assert_close(a.solve(0.1), b.solve(0.1))


def test_a_singular_system_and_overflowed_activations_are_clear_errors():
    with pytest.raises(ExpungeError, match="larger ridge"):
        solve_ridge(torch.zeros(3, 3), torch.ones(3), 0.0)
    with pytest.raises(ExpungeError, match="not finite"):
        solve_ridge(torch.full((2, 2), float("inf")), torch.ones(2), 1.0)


def test_the_share_of_one_direction():
    rows, weights = torch.tensor([[30.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([1.0, 2.0, 1.0])
    moments = Moments(2)
    moments.add(rows, weights, weights)
    assert moments.share == pytest.approx(900 / 903)
    assert Rows.gather([(rows, weights, weights)]).share == pytest.approx(900 / 903)
    assert Moments(2).share == 0.0
