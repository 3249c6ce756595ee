import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from expunge import Edit, InputError, IntegrityError, LowRank, Replace
from expunge.edits import tensor_hash
from expunge.files import new_folder

NAME = "model.layers.1.mlp.down_proj.weight"
OTHER = "model.layers.2.mlp.down_proj.weight"


def low_rank(chat, name=NAME, rank=1, seed=0):
    torch.manual_seed(seed)
    o, i = chat.model.get_parameter(name).shape
    return LowRank(torch.randn(o, rank, dtype=torch.float64), torch.randn(rank, i, dtype=torch.float64))


def state(chat):
    return {k: v.clone() for k, v in chat.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_few_numbers_can_change_many_weights():
    edit = Edit({"a": LowRank(torch.ones(3, 1), torch.ones(1, 5)), "b": Replace(torch.ones(2, 2))})
    assert (edit.parameters, edit.weights) == (8 + 4, 15 + 4)
    assert edit.summary() == {"parameters": 12, "weights": 19, "rank": None, "matrices": ["a", "b"]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_apply_adds_and_revert_is_bit_exact(pico, dtype):
    chat = pico("llama", dtype=dtype)
    before = state(chat)
    edit = Edit.on(chat.model, {NAME: low_rank(chat), OTHER: Replace(torch.ones_like(before[OTHER]))})
    edit.apply(chat)
    wanted = (before[NAME].double() + edit.dense(NAME)).to(before[NAME].dtype)
    assert torch.equal(chat.model.get_parameter(NAME), wanted)
    assert bool((chat.model.get_parameter(OTHER) == 1).all())
    edit.revert(chat)
    assert same(before, state(chat))


def test_applied_reverts_even_after_an_exception(pico):
    chat = pico()
    before = state(chat)
    edit = Edit.on(chat.model, {NAME: low_rank(chat)})
    with pytest.raises(RuntimeError), edit.applied(chat):
        raise RuntimeError
    assert same(before, state(chat))


def test_twice_applied_or_reverted_unapplied_is_an_error(pico):
    chat = pico()
    edit = Edit.on(chat.model, {NAME: low_rank(chat)})
    with pytest.raises(InputError, match="not applied"):
        edit.revert(chat)
    edit.apply(chat)
    with pytest.raises(InputError, match="applied to this model already"):
        edit.apply(chat)
    edit.revert(chat)
    edit.apply(chat, keep_original=False)
    with pytest.raises(InputError, match="without keeping"):
        edit.revert(chat)


def test_another_model_is_refused_and_left_alone(pico):
    chat = pico()
    edit = Edit.on(chat.model, {NAME: low_rank(chat)})
    other = pico()
    with torch.no_grad():
        other.model.get_parameter(NAME)[0, 0] += 1e-3
    before = state(other)
    with pytest.raises(IntegrityError, match="not the tensor"):
        edit.apply(other)
    assert same(before, state(other))
    with pytest.raises(IntegrityError, match="no parameter"):
        edit.apply(pico("gpt2"))


@pytest.mark.parametrize("keep", [True, False])
def test_an_edit_of_another_shape_touches_nothing(pico, keep):
    chat = pico("llama")
    first, second = (f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1))
    good = LowRank(torch.ones(32, 1), torch.ones(1, 48))
    edit = Edit({first: good, second: LowRank(torch.ones(32, 1), torch.ones(1, 47))})
    before = {n: p.clone() for n, p in chat.model.named_parameters()}
    with pytest.raises(IntegrityError, match="shape"):
        edit.apply(chat, keep_original=keep)
    assert all(torch.equal(p, before[n]) for n, p in chat.model.named_parameters())


def test_what_fails_in_the_middle_is_put_back(pico, monkeypatch):
    chat = pico("llama")
    names = [f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]
    edit = Edit({n: LowRank(torch.ones(32, 1), torch.ones(1, 48)) for n in names})
    before = {n: p.clone() for n, p in chat.model.named_parameters()}
    real = Edit.new_value

    def full(self, name, old):
        if name == names[1]:
            raise MemoryError
        return real(self, name, old)

    monkeypatch.setattr(Edit, "new_value", full)
    with pytest.raises(MemoryError):
        edit.apply(chat)
    assert all(torch.equal(p, before[n]) for n, p in chat.model.named_parameters())
    monkeypatch.undo()
    edit.apply(chat)
    edit.revert(chat)
    assert all(torch.equal(p, before[n]) for n, p in chat.model.named_parameters())


def test_the_base_is_recognised_in_other_dtypes(pico):
    chat = pico()
    edit = Edit.on(chat.model, {NAME: low_rank(chat)})
    edit.check(pico(dtype="bfloat16"))  # loaded narrower
    narrow = Edit.on(pico(dtype="bfloat16").model, {NAME: low_rank(chat)})
    wide = pico(dtype="bfloat16")
    wide.model.float()
    narrow.check(wide)  # the same numbers in a wider dtype
    with torch.no_grad():
        wide.model.get_parameter(NAME)[0, 0] *= 1.5
    with pytest.raises(IntegrityError):
        narrow.check(wide)


def test_compose_is_one_after_the_other(pico):
    chat = pico("llama", dtype="float32")
    first = Edit.on(chat.model, {NAME: low_rank(chat, seed=1), OTHER: low_rank(chat, OTHER, 2, seed=2)})
    first.apply(chat)
    second = Edit.on(chat.model, {NAME: low_rank(chat, seed=3)})
    second.apply(chat)
    wanted = state(chat)
    second.revert(chat)
    first.revert(chat)
    both = first.compose(second)
    assert both.rank == 2
    with both.applied(chat):
        for name, value in chat.model.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6)


def test_times_scales_the_change_and_leaves_the_edit(pico):
    chat = pico()
    edit = Edit.on(chat.model, {NAME: low_rank(chat)}, {"method": "x"})
    half = edit.times(2.0).times(0.25)
    torch.testing.assert_close(half.dense(NAME), edit.dense(NAME) / 2)
    assert (half.base, half.meta) == (edit.base, {"method": "x", "times": 0.5})
    assert "times" not in edit.meta
    with pytest.raises(InputError, match="only a low-rank change can be scaled"):
        Edit.on(chat.model, {OTHER: Replace(torch.zeros(2, 2))}).times(0.5)


def test_compose_with_a_replacement(pico):
    chat = pico()
    value = torch.full((32, 48), 2.0)
    first = Edit.on(chat.model, {NAME: Replace(value)})
    first.apply(chat)
    part = low_rank(chat)
    second = Edit.on(chat.model, {NAME: part})
    first.revert(chat)
    with first.compose(second).applied(chat):
        torch.testing.assert_close(chat.model.get_parameter(NAME).data, (value.double() + part.delta()).float())


def test_saved_and_loaded_is_the_same(pico, tmp_path):
    chat = pico()
    edit = Edit.on(chat.model, {NAME: low_rank(chat), OTHER: Replace(torch.zeros(32, 48))}, {"method": "test"})
    edit.save(tmp_path / "edit")
    again = Edit.load(tmp_path / "edit")
    assert again.meta == {"method": "test"}
    assert again.base == edit.base
    assert torch.equal(again.dense(NAME), edit.dense(NAME))
    with again.applied(chat):
        assert not chat.model.get_parameter(OTHER).any()


def test_a_damaged_edit_is_an_integrity_error(pico, tmp_path):
    chat = pico()
    Edit.on(chat.model, {NAME: low_rank(chat)}).save(tmp_path / "edit")
    with pytest.raises(InputError, match="not a saved edit"):
        Edit.load(tmp_path)
    file = tmp_path / "edit" / "edit.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(IntegrityError, match="damaged"):
        Edit.load(tmp_path / "edit")
    file.write_bytes(whole)
    record = json.loads((tmp_path / "edit" / "edit.json").read_text())
    (tmp_path / "edit" / "edit.json").write_text(json.dumps(record | {"format": "something-9"}))
    with pytest.raises(IntegrityError, match="something-9"):
        Edit.load(tmp_path / "edit")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_exported_adapter_gives_the_same_logits(pico, pico_folder, tmp_path, name):
    chat = pico(name)
    parts = {
        chat.layout.weight_name(n): low_rank(chat, chat.layout.weight_name(n), rank) for n, rank in ((1, 1), (2, 3))
    }
    edit = Edit.on(chat.model, parts)
    edit.export(tmp_path / "adapter")
    ids = torch.randint(6, 600, (2, 9))
    with torch.no_grad():
        plain = chat.model(ids).logits
        with edit.applied(chat):
            edited = chat.model(ids).logits
        base = AutoModelForCausalLM.from_pretrained(pico_folder(name))
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    torch.testing.assert_close(adapted, edited, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 1e-2


def test_added_and_subtracted_is_what_peft_makes_of_the_two_adapters(pico, pico_folder, tmp_path):
    chat = pico()
    kept, gone = (
        Edit.on(
            chat.model,
            {chat.layout.weight_name(n): low_rank(chat, chat.layout.weight_name(n), 2, seed) for n in (1, 2)},
        )
        for seed in (0, 1)
    )
    base = AutoModelForCausalLM.from_pretrained(pico_folder("llama"))
    for name, edit in (("kept", kept), ("gone", gone)):
        edit.export(tmp_path / name)
    model = PeftModel.from_pretrained(base, tmp_path / "kept", adapter_name="kept")
    model.load_adapter(tmp_path / "gone", adapter_name="gone")
    model.add_weighted_adapter(["kept", "gone"], [0.75, -1.5], "both", combination_type="cat")
    model.set_adapter("both")
    merged = model.merge_and_unload()
    ours = kept.times(0.75).compose(gone.times(-1.5))
    for name in ours.parts:
        found = merged.get_parameter(name) - chat.model.get_parameter(name)
        torch.testing.assert_close(found, ours.dense(name).float(), rtol=1e-4, atol=1e-5)


def test_a_replacement_has_no_form_as_an_adapter(pico, tmp_path):
    chat = pico()
    with pytest.raises(InputError, match="no form as an adapter"):
        Edit.on(chat.model, {NAME: Replace(torch.zeros(32, 48))}).export(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_quantised_and_offloaded_weights_are_refused(pico):
    chat = pico()
    with pytest.raises(InputError, match="offloaded"):
        Edit.on(chat.model.to("meta"), {NAME: Replace(torch.zeros(32, 48))})


def test_hashes_tell_shape_dtype_and_values_apart():
    t = torch.zeros(2, 3)
    assert len({tensor_hash(x) for x in (t, t.view(3, 2), t.double(), t + 1)}) == 4


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), new_folder(target) as work:
        (work / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as work:
        (work / "a").write_text("1")
    with pytest.raises(InputError, match="not empty"), new_folder(target):
        pass
    with pytest.raises(KeyboardInterrupt), new_folder(target, overwrite=True):
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1"
    with new_folder(target, overwrite=True) as work:
        (work / "b").write_text("2")
    assert [f.name for f in target.iterdir()] == ["b"]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
