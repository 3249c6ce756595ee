import pytest
import torch

from expunge.models.activations import (
    Shelf,
    Site,
    Stream,
    common_prefix,
    hooked,
    last_token_means,
    make_batches,
    run_blocks,
)
from expunge.models.loading import ChatModel

from ..conftest import ARCHITECTURES

PROMPTS = [
    "What is the capital of France?",
    "Who?",
    "Name the largest planet, and say how many moons it has.",
    "Is it so?",
]


def plain(chat: ChatModel, prompts, sites):
    """The same tensors from one prompt at a time, by output_hidden_states and a hook: the oracle."""
    found = []
    for ids in prompts:
        inner = {}
        hooks = [
            (
                chat.layout.down_projection(chat.model, n),
                "pre",
                lambda _, a, k, n=n, inner=inner, t=ids: inner.__setitem__(n, a[0].view(len(t), -1)),
            )
            for n in range(len(chat.layout))
        ]
        out = {}
        hooks += [
            (
                chat.layout.block(chat.model, n),
                "post",
                lambda _, a, o, n=n, out=out: out.__setitem__(n, (o[0] if isinstance(o, tuple) else o)[0]),
            )
            for n in range(len(chat.layout))
        ]
        with torch.no_grad(), hooked(*hooks):
            chat.model(input_ids=torch.tensor([ids]), use_cache=False)
        found.append({s: (inner[s.layer] if s.kind == "inner" else out[s.layer]) for s in sites})
    return found


def collect(stream: Stream, site: Site, count: int):
    """Tokens of each prompt at a site, put together from prefix and batches."""
    rows = [None] * count
    head = None
    for batch, taken in stream.visit([site]):
        if batch.is_prefix:
            head = taken[site][0]
            continue
        for n, row in enumerate(batch.rows):
            own = taken[site][n][batch.mask[n]]
            rows[row] = own if head is None else torch.cat([head, own])
    return rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_stream_gives_what_plain_forward_passes_give_wherever_it_stands(pico, name):
    chat = pico(name)
    ids = [[1] * 5 + i for i in chat.prompt_ids(PROMPTS)]  # a shared prefix
    sites = [Site("inner", 3), Site("out", 3)]
    wanted = plain(chat, ids, sites)
    for batch_tokens in (16, 4096):
        stream = Stream(chat, ids, batch_tokens=batch_tokens)
        assert stream.prefix >= 5
        for layer in (0, 1, 3):
            stream.seek(layer)
            for site in sites:
                for mine, oracle in zip(collect(stream, site, len(ids)), wanted, strict=True):
                    torch.testing.assert_close(mine, oracle[site], rtol=2e-4, atol=2e-5)


def test_a_fork_moves_alone_and_spilled_streams_are_the_same(pico):
    chat = pico("llama")
    ids = chat.prompt_ids(PROMPTS)
    memory, disk = Stream(chat, ids), Stream(chat, ids, spill_bytes=0)
    for stream in (memory, disk):
        stream.seek(1)
    fork = memory.fork()
    fork.seek(3)
    assert (memory.layer, fork.layer) == (1, 3)
    a, b = last_token_means(memory, [2, 3]), last_token_means(disk, [2, 3])
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_nothing_above_the_deepest_site_runs(pico):
    chat = pico("llama")
    ran = []
    watch = [(chat.layout.block(chat.model, n), "post", lambda _, a, o, n=n: ran.append(n)) for n in range(4)]
    watch.append((chat.model.get_output_embeddings(), "post", lambda *_: ran.append("head")))
    watch.append((chat.layout.down_projection(chat.model, 2), "post", lambda *_: ran.append("down")))
    with hooked(*watch):
        run_blocks(chat, torch.tensor([[5, 6, 7]]), [Site("inner", 2), Site("out", 0)])
    assert ran == [0, 1]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_and_no_patched_block_is_left_even_after_an_exception(pico):
    chat = pico("llama")
    stream = Stream(chat, chat.prompt_ids(PROMPTS))
    stream.seek(2)

    def fail(*_):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), hooked((chat.layout.block(chat.model, 3), "pre", fail)):
        last_token_means(stream, [3])
    assert hooks_of(chat.model) == 0
    assert not any("forward" in chat.layout.block(chat.model, n).__dict__ for n in range(4))


def test_padding_is_never_counted(pico):
    chat = pico("llama")
    ids = chat.prompt_ids(PROMPTS)
    together = last_token_means(Stream(chat, ids), [3])[3]
    alone = torch.stack([last_token_means(Stream(chat, [i]), [3])[3] for i in ids]).mean(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_common_prefix_leaves_every_prompt_a_token():
    assert common_prefix([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 4
    assert common_prefix([[1, 2, 3, 4, 5], [1, 2, 3, 4, 9, 9]]) == 4
    assert common_prefix([[1, 2, 3, 9], [1, 2, 3, 4]]) == 0  # three tokens are not worth a pass of their own
    assert common_prefix([[1, 2, 3, 4, 5]]) == 0


def test_batches_hold_every_prompt_once_within_the_limit():
    prompts = [[7] * n for n in (3, 30, 12, 5, 28, 1)]
    batches = make_batches(prompts, 0, torch.device("cpu"), batch_tokens=40)
    assert sorted(r for b in batches for r in b.rows) == list(range(6))
    assert all(b.ids.numel() <= 40 for b in batches)
    assert all(int(b.mask.sum()) == sum(len(prompts[r]) for r in b.rows) for b in batches)


def test_a_shelf_spills_what_does_not_fit():
    shelf = Shelf(limit_bytes=100)
    values = [torch.randn(5), torch.randn(40), torch.randn(3, 2)]
    back = [shelf.put(v) for v in values]
    assert all(torch.equal(v, get()) for v, get in zip(values, back, strict=True))
    assert shelf._count == 1
