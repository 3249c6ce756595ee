import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.models.cache import dropped, with_room
from expunge.models.loading import load_model


@pytest.fixture(scope="module")
def cached(tiny_folder):
    chat = load_model(tiny_folder)
    ids = torch.arange(3, 3 + 6 * 4).view(6, 4) % 20
    with torch.no_grad():
        return chat, with_room(chat.model(ids, use_cache=True).past_key_values, 3)


@given(st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
@settings(deadline=None, max_examples=30)
def test_rows_that_stay_keep_their_keys_and_values_and_go_on(cached, keep):
    chat, cache = cached
    keep = torch.tensor(keep)
    mine = copy.deepcopy(cache)
    order = dropped(mine, keep)
    assert sorted(order.tolist()) == keep.nonzero()[:, 0].tolist()
    stays = [n for n in order.tolist() if n < len(order)]
    assert stays == [n for at, n in enumerate(order.tolist()) if at == n]  # only the last rows have moved
    for one, other in zip(mine.layers, cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys[order])
        assert torch.equal(one.values, other.values[order])
    ids = torch.arange(6)[:, None]
    with torch.no_grad():
        after = chat.model(ids[order], past_key_values=mine).logits
        whole = chat.model(ids, past_key_values=copy.deepcopy(cache)).logits
    torch.testing.assert_close(after, whole[order])
