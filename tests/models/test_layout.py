import pytest
import torch
import transformers

from expunge import InputError
from expunge.models.activations import check_additive
from expunge.models.layout import find_layout

from ..conftest import ARCHITECTURES, EDITABLE, NORMALISING, SIZES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_down_projections(pico, name):
    chat = pico(name)
    layout = chat.layout
    assert len(layout) == 4
    assert (layout.hidden, layout.inner) == (32, 48)
    weight = chat.model.get_parameter(layout.weight_name(2))
    assert tuple(weight.shape) == ((48, 32) if layout.transposed else (32, 48))
    assert layout.transposed == (name == "gpt2")


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gpt_neox", "phi3"])
def test_structure_finds_what_the_table_holds(pico, name, monkeypatch):
    chat = pico(name)
    known = chat.layout
    monkeypatch.setattr("expunge.models.layout._TABLE", {})
    assert find_layout(chat.model) == known


@pytest.mark.parametrize("name", EDITABLE)
def test_blocks_that_add_what_the_projection_puts_out_pass(pico, name):
    check_additive(pico(name), [0, 2, 3])


@pytest.mark.parametrize("name", NORMALISING)
def test_blocks_that_normalise_are_refused(pico, name):
    with pytest.raises(InputError, match="normalises or scales"):
        check_additive(pico(name), [0, 2, 3])


def test_a_mixture_of_experts_is_refused_with_what_to_pass():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2)
    with pytest.raises(InputError, match=r"mixture of experts.*--layout"):
        find_layout(transformers.MixtralForCausalLM(config))


def test_an_override_wins_and_a_wrong_one_says_so(pico):
    chat = pico("llama")
    other = find_layout(chat.model, "model.layers.{}.self_attn.o_proj")
    assert other.weight_name(1) == "model.layers.1.self_attn.o_proj.weight"
    with pytest.raises(InputError, match="no down projection"):
        find_layout(chat.model, "model.layers.{}.mlp.nothing")
    with pytest.raises(InputError, match=r"needs one \{\}"):
        find_layout(chat.model, "model.layers.mlp")


@pytest.mark.parametrize(
    ("layers", "message"), [([4], "out of range"), ([-1], "out of range"), ([], "no layers"), ([1, 1], "twice")]
)
def test_wrong_layers(pico, layers, message):
    with pytest.raises(InputError, match=message):
        pico("llama").layout.check_layers(layers)
