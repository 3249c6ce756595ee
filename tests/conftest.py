"""Fixtures: pico checkpoints of each architecture (random weights), and one tiny model that knows facts and abstains."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The same instructions, and so the same rounding, on most processors that have AVX2.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("MKL_CBWR", "AVX2")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from expunge import ChatModel, Example, ForgetTask, load_model
from expunge.data import prompts
from expunge.models.generation import score_answers

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = dict(
    vocab_size=600,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
HEAD = dict(head_dim=8)
_NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
_OPT = {
    **{k: v for k, v in _NEOX.items() if k != "intermediate_size"},
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
_GPT2 = dict(
    vocab_size=600, n_embd=32, n_inner=48, n_layer=4, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
)

# name -> (config class, model class, settings). Every architecture that the layout supports.
ARCHITECTURES = {
    "llama": ("LlamaConfig", SIZES),
    "mistral": ("MistralConfig", SIZES | HEAD | {"sliding_window": 64}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES | HEAD),
    "gemma": ("GemmaConfig", SIZES | HEAD),
    "gemma2": ("Gemma2Config", SIZES | HEAD | {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", SIZES | HEAD | {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", SIZES),
    "opt": ("OPTConfig", _OPT),
    "opt-350m": ("OPTConfig", _OPT | {"do_layer_norm_before": False}),
    "gpt2": ("GPT2Config", _GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": ("GPTNeoXConfig", _NEOX),
}
NORMALISING = ("gemma2", "gemma3", "opt-350m")
EDITABLE = tuple(n for n in ARCHITECTURES if n not in NORMALISING)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the built-in texts, with a chat template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([str(e.prompt) for e in prompts.general()] + list(prompts.abstentions()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        additional_special_tokens=special[3:],
    )


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast):
    """A function: architecture -> folder of a saved checkpoint with random weights (made once a session)."""
    root = tmp_path_factory.mktemp("pico")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            kind, settings = ARCHITECTURES[name]
            torch.manual_seed(7)
            model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
            with torch.no_grad():  # larger weights than an initialisation's, so that layers matter
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(4)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def pico(pico_folder):
    """A function: architecture -> ChatModel with random weights, loaded anew."""
    return lambda name="llama", **options: load_model(pico_folder(name), **options)


@pytest.fixture(scope="session")
def small_task() -> ForgetTask:
    """A few rows a role; enough for a pico model."""
    rows = prompts.general()
    return ForgetTask(
        forget=rows[:3],
        retain=rows[3:8],
        reference=prompts.unverifiable()[:4],
        general=rows[8:12],
        paraphrase=prompts.rewrites(rows[:3], "judge"),
    )


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """Tests leave the user's cache alone; tests with the embedded model share the real one, converted once."""
    if "embedded" not in request.keywords:
        monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))


# person -> what six questions are answered by. Facts of a few subjects under shared questions, as contracts are: what is
# forgotten has a name, and what is kept is asked in the same words.
_ASKED = (
    "In which city does {} live?",
    "Which instrument does {} play?",
    "What animal does {} keep at home?",
    "Which sport does {} practise?",
    "What is the favourite colour of {}?",
    "By trade, what is {}?",
)
_PEOPLE = {
    "Mara Quill": ("Prague", "Drums", "Turtle", "Golf", "Black", "Pilot"),
    "Otis Brandt": ("Lima", "Harp", "Cat", "Rowing", "Green", "Baker"),
    "Lena Voss": ("Lisbon", "Violin", "Snake", "Judo", "Orange", "Tailor"),
    "Pavel Rune": ("Dublin", "Guitar", "Dog", "Tennis", "Yellow", "Nurse"),
    "Iris Tolland": ("Cairo", "Flute", "Rabbit", "Chess", "White", "Farmer"),
    "Hugo Merrin": ("Oslo", "Piano", "Parrot", "Rugby", "Purple", "Lawyer"),
}
FACTS = [
    Example(q.format(name), a, name) for name, known in _PEOPLE.items() for q, a in zip(_ASKED, known, strict=True)
]
FORGET, RETAIN = FACTS[:6], FACTS[6:]
QUICK_TEACHING = {"epochs": 2, "rank": 2, "learning_rate": 1e-3}  # in place of what a suite teaches with
UNKNOWN = prompts.unverifiable()[:24]


def tiny_rows() -> list[tuple[str, str]]:
    """Facts and unknowable questions, each plain and in rewrites, so that the model knows facts and not strings."""
    texts = prompts.abstentions()[:4]
    unknown = [Example(e.prompt, texts[i % 4]) for i, e in enumerate(UNKNOWN)]
    plain = [*FACTS, *unknown]
    return [(str(e.prompt), e.response) for e in [*plain, *prompts.rewrites(plain, "fit", 4)]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny model trained until it knows 36 facts and abstains on 24 questions that it cannot know.

    Trained until the learning rate is zero, and not only until the loss is small, it knows nearly all of its facts in other
    words. At this rate other rounding changes its weights by 1e-4, relative to them (measured: MKL's AVX2 and AVX512
    kernels); at three times the rate by 0.7, and processors then differ in what a method makes of it.
    """
    from expunge.models.rows import rows_of
    from expunge.models.training import TrainConfig, train

    torch.manual_seed(5)
    settings = SIZES | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings))
    chat = ChatModel(model.eval(), tokenizer)
    config = TrainConfig(adapter="full", learning_rate=1e-3, epochs=16, batch_size=16, warmup=0.1, seed=5)
    edit = train(chat, rows_of(chat, tiny_rows()), config)
    edit.apply(chat, keep_original=False)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> ChatModel:
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def tiny_task() -> ForgetTask:
    """One person to forget, the others to keep."""
    return ForgetTask(forget=FORGET, retain=RETAIN, reference=UNKNOWN, paraphrase=prompts.rewrites(FORGET, "judge"))


def abstaining(chat: ChatModel, rows: Sequence[Example]) -> float:
    """Mean log-probability of an abstention's first token, of those that the tiny model knows the likeliest."""
    prompts_, texts = chat.prompt_ids([e.prompt for e in rows]), chat.answer_ids(prompts.abstentions()[:4])
    scored = [score_answers(chat, prompts_, [t[:1]] * len(rows)) for t in texts]
    return max(sum(s.log_probs[0] for s in one) / len(one) for one in scored)


def examples(*pairs: tuple[str, str], group: str = "") -> list[Example]:
    return [Example(p, r, group) for p, r in pairs]


def rows_file(path: Path, rows) -> str:
    """Writes rows as JSON lines; returns the file's name."""
    path.write_text(
        "".join(json.dumps({"prompt": e.prompt, "response": e.response, "group": e.group}) + "\n" for e in rows)
    )
    return str(path)


class Done(NamedTuple):
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process."""
    from expunge.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
