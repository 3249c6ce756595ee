"""The verbs, run in this process by their console script: exit codes, one clear line, nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import Edit, ForgetTask, evaluate, load_model, unlearn, verbs
from expunge.cli import VERBS
from expunge.demo import demo_spec
from expunge.errors import InputError
from expunge.models.generation import greedy
from expunge.models.sophia import Sophia

from .conftest import FACTS, FORGET, QUICK_TEACHING, RETAIN, UNKNOWN, rows_file


@pytest.fixture
def files(tmp_path):
    return {
        "forget": rows_file(tmp_path / "forget.jsonl", FORGET),
        "retain": rows_file(tmp_path / "retain.jsonl", RETAIN),
        "reference": rows_file(tmp_path / "reference.jsonl", UNKNOWN),
    }


SETTINGS = ("--set", "layers=[2,3]", "--set", "coefficient=2.0", "--set", "ridge=0.01", "--max-new-tokens", "16")


def unlearn_words(model, files, out, *more):
    roles = [w for role, file in files.items() for w in (f"--{role}", file)]
    return ["unlearn", model, *roles, "--general", files["retain"], "--out", out, *SETTINGS, *more]


def test_unlearn_writes_a_whole_checkpoint_with_its_evidence(run, tiny_folder, files, tmp_path):
    out = tmp_path / "out"
    code, text, err = run(*unlearn_words(tiny_folder, files, out, "--json", "--keep-edit", tmp_path / "edit"))
    assert code == 0, err
    report = json.loads(text)
    assert report["before"]["forget"]["rouge1"] > 0.9 > 0.3 > report["after"]["forget"]["rouge1"]
    assert report["edit"]["rank"] == 1
    assert len(report["edit"]["matrices"]) == 2
    manifest = json.loads((out / "expunge.json").read_text())
    assert set(report) <= set(manifest)
    assert set(report["intervals"]) == {"before", "after"}
    low, high = manifest["intervals"]["after"]["forget"]["rouge1"]
    assert low <= report["after"]["forget"]["rouge1"] <= high
    names = {f.name for f in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "expunge.json", "SHA256SUMS"} <= names
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=False).returncode == 0


def test_a_run_that_diverges_says_so_and_leaves_nothing(run, tiny_folder, files, tmp_path):
    words = [w for role in ("forget", "retain") for w in (f"--{role}", files[role])]
    settings = ["--method", "ga", "--set", "learning_rate=100", "--set", "epochs=3", "--set", "adapter=full"]
    code, _, err = run("unlearn", tiny_folder, *words, *settings, "--out", tmp_path / "out")
    assert code == 1
    assert "training diverged at step" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_optimizer_flag_reaches_the_training(run, tiny_folder, files, tmp_path, monkeypatch):
    steps, real = [], Sophia.step

    def counted(self, *args, **kwargs):
        steps.append(self.param_groups[0]["weight_decay"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Sophia, "step", counted)
    words = [w for role in ("forget", "retain") for w in (f"--{role}", files[role])]
    words += ["--method", "graddiff", "--set", "epochs=2", "--set", "weight_decay=0.3", "--limit", "4"]
    for optimizer, expected in (("adamw", []), ("sophia", [0.3, 0.3])):
        more = ["--optimizer", optimizer, "--out", tmp_path / optimizer, "--max-new-tokens", "4"]
        code, _, err = run("unlearn", tiny_folder, *words, *more)
        assert code == 0, err
        assert steps == expected


def test_nothing_in_the_output_names_the_subject(run, tiny_folder, files, tmp_path):
    out = tmp_path / "out"
    secret = tmp_path / "shakespeare-and-co.jsonl"
    Path(files["forget"]).rename(secret)
    code, _, err = run(*unlearn_words(tiny_folder, files | {"forget": str(secret)}, out))
    assert code == 0, err
    for file in out.iterdir():
        if file.suffix in (".json", ".md") and file.name != "tokenizer.json":
            text = file.read_text()
            assert "shakespeare" not in text
            assert not any(t in text for e in FORGET for t in (str(e.prompt), e.group)), file.name
    assert "salted:" in (out / "expunge.json").read_text()
    assert not list(out.glob("*edit*"))


def test_the_salt_is_made_once_and_whole(monkeypatch, tmp_path):
    from expunge.provenance import salt

    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    (tmp_path / "salt").touch()  # as another process leaves it that is killed, or has not written it yet
    made = salt()
    assert len(made) == 32
    assert salt() == made
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600


def test_the_saved_folder_answers_in_plain_transformers_as_the_model_in_memory(run, tiny_folder, files, tmp_path):
    out = tmp_path / "out"
    assert run(*unlearn_words(tiny_folder, files, out, "--keep-edit", tmp_path / "edit"))[0] == 0
    prompts = [str(e.prompt) for e in FACTS[:10]]
    chat = load_model(tiny_folder)
    ids = chat.prompt_ids(prompts)
    with Edit.load(tmp_path / "edit").applied(chat):
        wanted = [list(a.tokens) for a in greedy(chat, ids, 12)]
    script = (
        "import sys, json, torch\n"
        "sys.modules['expunge'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder, ids = sys.argv[1], json.loads(sys.argv[2])\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        "out = [model.generate(torch.tensor([i]), max_new_tokens=12, do_sample=False)[0][len(i):].tolist() for i in ids]\n"
        "print(json.dumps([[t for t in o if t != tokenizer.eos_token_id] for o in out]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(out), json.dumps(ids)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


def test_revert_restores_the_base_bit_for_bit(run, tiny_folder, files, tmp_path):
    out, edit, back = tmp_path / "out", tmp_path / "edit", tmp_path / "back"
    assert run(*unlearn_words(tiny_folder, files, out, "--keep-edit", edit))[0] == 0
    code, _, err = run("revert", out, "--edit", edit, "--out", back)
    assert code == 0, err
    base, restored = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tiny_folder, back))
    assert all(torch.equal(base[k], restored[k]) for k in base)
    AutoTokenizer.from_pretrained(back)
    (edit / "originals.safetensors").unlink()
    code, _, err = run("revert", out, "--edit", edit, "--out", tmp_path / "again")
    assert code == 2
    assert "use the base model" in err
    assert not (tmp_path / "again").exists()


def test_export_writes_an_adapter(run, tiny_folder, files, tmp_path):
    assert run(*unlearn_words(tiny_folder, files, tmp_path / "out", "--keep-edit", tmp_path / "edit"))[0] == 0
    code, _, err = run("export", tmp_path / "edit", "--out", tmp_path / "adapter")
    assert code == 0, err
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in (tmp_path / "adapter").iterdir()}


def test_a_model_that_cannot_abstain_stops_with_what_to_do(run, pico_folder, files, tmp_path):
    code, _, err = run(*unlearn_words(pico_folder("llama"), files, tmp_path / "out"))
    assert code == 2
    assert "--teach-abstention" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("retain", "sets", "kept"), [(True, (), True), (False, (), False), (False, ("teach.keep=true",), True)]
)
def test_what_was_taught_is_kept_where_retain_rows_are_given(run, pico_folder, files, tmp_path, retain, sets, kept):
    words = [
        "unlearn",
        pico_folder("llama"),
        "--forget",
        files["forget"],
        "--teach-abstention",
        "--out",
        tmp_path / "out",
    ]
    words += ["--retain", files["retain"]] if retain else []
    for value in ("teach.steps=2", "layers=[1]", "coefficient=1.0", "ridge=0.1", "trials=1", *sets):
        words += ["--set", value]
    code, text, err = run(*words, "--max-new-tokens", "4", "--limit", "6", "--json")
    assert code == 0, err
    report = json.loads(text)
    assert ("taught" in report) == kept
    assert report["chosen"] == {"layers": [1], "coefficient": [1.0], "ridge": 0.1}
    assert len(report["edit"]["matrices"]) == (2 if kept else 1)  # teaching writes at both layers


def test_evaluate_prints_one_document_of_the_agreed_shape(run, tiny_folder, files, tmp_path):
    code, text, _ = run(
        "evaluate",
        tiny_folder,
        "--forget",
        files["forget"],
        "--retain",
        files["retain"],
        "--json",
        "--rows",
        tmp_path / "r.json",
    )
    assert code == 0
    result = json.loads(text)
    refusal = {"refusal_quality", "refusal_encoder", "coherence"}
    assert set(result) == {"forget", "retain", "deviation_score", "seconds", "intervals", *refusal}
    low, high = result["intervals"]["forget"]["rouge1"]
    assert low <= result["forget"]["rouge1"] <= high
    assert len(json.loads((tmp_path / "r.json").read_text())["retain"]) == len(RETAIN)


def test_evaluate_abilities_alone(run, tiny_folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "gsm8k").mkdir(parents=True)
    (data / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": "One and one?", "answer": "#### 2"}) + "\n")
    monkeypatch.setenv("EXPUNGE_DATA", str(data))
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and then the dog came.")
    code, text, _ = run(
        "evaluate", tiny_folder, "--text", tmp_path / "text.txt", "--gsm8k", 3, "--max-new-tokens", 8, "--json"
    )
    assert code == 0
    found = json.loads(text)
    assert set(found) == {"gsm8k", "perplexity", "intervals"}
    assert found["perplexity"] > 1
    assert found["intervals"] == {"gsm8k": {"gsm8k": [found["gsm8k"]] * 2}}  # one problem
    code, text, err = run("evaluate", tiny_folder, "--text", tmp_path / "text.txt", "--quiet")
    assert (code, err) == (0, "")
    assert f"{found['perplexity']:.3f}" in text
    for flag in ("--retain-judge", "--reference"):  # of unlearn
        assert run("evaluate", tiny_folder, flag, tmp_path / "text.txt").code == 2
    code, _, err = run("evaluate", tiny_folder, "--text", tmp_path / "none.txt")
    assert code == 2
    assert "no such file" in err
    code, _, err = run("evaluate", tiny_folder)
    assert code == 2
    assert "nothing to evaluate" in err


def test_doctor(run, tiny_folder, pico_folder):
    code, text, _ = run("doctor", tiny_folder, "--json")
    report = json.loads(text)
    assert code == 0
    assert report["layers"] == 6
    assert report["lunar_applies"] is True
    assert report["bf16_speedup"] > 0
    code, text, _ = run("doctor", pico_folder("gemma2"))
    assert code == 0
    assert "lunar does not apply" in text


def test_teach_facts(run, tiny_folder, tmp_path):
    new = rows_file(tmp_path / "new.jsonl", [type(FACTS[0])("Which cat?", "Tom")])
    sets = [w for s in ("epochs=30", "learning_rate=0.003", "adapter=full", "batch_size=1") for w in ("--set", s)]
    code, text, err = run("teach", tiny_folder, "--data", new, "--out", tmp_path / "taught", "--json", *sets)
    assert code == 0, err
    chat = load_model(tmp_path / "taught")
    assert greedy(chat, chat.prompt_ids(["Which cat?"]), 8)[0].text == "Tom"
    code, _, err = run("teach", tiny_folder, "--out", tmp_path / "x")
    assert code == 2
    assert "--data FILE or --abstention" in err


def test_dry_run_loads_no_weights(run, tiny_folder, files, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    monkeypatch.setattr("expunge.plan._rate", lambda: 1e9)  # the same machine for both plans
    code, text, _ = run(*unlearn_words(tiny_folder, files, tmp_path / "out", "--dry-run", "--json"))
    assert code == 0
    plan = json.loads(text)
    assert plan["layers"] == [2, 3]
    assert plan["matrices"] == [f"model.layers.{n}.mlp.down_proj.weight" for n in (2, 3)]
    assert plan["rows"]["forget"] == len(FORGET)
    assert plan["memory_bytes"] > 0
    assert plan["disk_bytes"] > 0
    assert not (tmp_path / "out").exists()
    searched = [
        w for w in unlearn_words(tiny_folder, files, tmp_path / "out", "--dry-run", "--json") if w not in SETTINGS
    ]
    code, text, _ = run(*searched)
    assert code == 0
    assert json.loads(text)["seconds"]["unlearning"] > 4 * plan["seconds"]["unlearning"]
    code, text, _ = run(
        *unlearn_words(tiny_folder, files, tmp_path / "out", "--dry-run", "--json"), "--set", "refine=300"
    )
    assert code == 0
    assert json.loads(text)["seconds"]["unlearning"] > 4 * plan["seconds"]["unlearning"]


def test_dry_run_of_a_method_that_trains(run, tiny_folder, files, tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.plan._rate", lambda: 1e9)
    words = [w for w in unlearn_words(tiny_folder, files, tmp_path / "out", "--dry-run", "--json") if w not in SETTINGS]

    def plan(*more):
        code, text, err = run(*words, *more)
        assert code == 0, err
        return json.loads(text)

    one, two = (plan("--method", "graddiff", "--set", f"epochs={n}") for n in (5, 10))
    assert one["layers"] == "0 to 5"
    assert one["matrices"] == "all linear ones, by LoRA of rank 8"
    assert two["seconds"]["unlearning"] == pytest.approx(2 * one["seconds"]["unlearning"], rel=0.1)
    full = plan("--method", "graddiff", "--set", "epochs=10", "--set", "adapter=full")
    assert full["matrices"] == "all"
    assert full["seconds"]["unlearning"] == pytest.approx(1.5 * two["seconds"]["unlearning"], rel=0.1)
    assert full["memory_bytes"] > two["memory_bytes"] > 0
    released = [plan("--method", "reveal-release", "--set", f"rounds={n}")["seconds"]["unlearning"] for n in (1, 3)]
    assert released[1] == pytest.approx(3 * released[0], rel=0.1)
    assert plan("--method", "rmu")["layers"] == [1, 2, 3]


def test_dry_run_names_a_taught_direction(run, tiny, tiny_folder, files, tmp_path):
    unlearn(tiny, ForgetTask(forget=FORGET, reference=UNKNOWN), layers=[2, 3], coefficient=1.0, ridge=0.1).save(
        tmp_path / "taught"
    )
    words = unlearn_words(tiny_folder, files, tmp_path / "out", "--dry-run", "--json")
    for more, shown in (
        (["--set", f"direction={tmp_path / 'taught'}"], str(tmp_path / "taught")),
        (["--teach-abstention"], "what teaching abstention writes"),
        ([], "own"),
    ):
        code, text, err = run(*words, *more)
        assert code == 0, err
        settings = json.loads(text)["settings"]
        assert settings["direction"] == shown
        assert settings["answers"] == (250 if shown == "own" else 80)


def test_bench_prints_its_table_and_draws_it_anew(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.data.suites.PISTOL_TEACHING", QUICK_TEACHING)
    groups = [{"prompt": e.prompt, "response": e.response, "group": "AB"[n % 2]} for n, e in enumerate(FACTS)]
    data, out = tmp_path / "facts.jsonl", tmp_path / "bench"
    data.write_text("\n".join(map(json.dumps, groups)))
    words = ["bench", "facts", "--model", tiny_folder, "--data", data, "--forget-group", "A", "--methods", "ga"]
    words += ["--regimes", "published", "--seeds", "0,1", "--out", out]
    code, text, err = run(*words)
    assert code == 0, err
    assert "6 cells to run, about" in err
    assert "| ga | published | 2 |" in text
    code, again, err = run("bench", "report", out)
    assert (code, again, err) == (0, text, "")
    code, other, _ = run("bench", "report", out, "--metrics", "probability")
    assert "forget probability" in other
    code, found, _ = run(*words, "--json")
    assert [c["cell"][:2] for c in json.loads(found)["cells"]] == [
        [n, name] for n in (0, 1) for name in ("retrained", "taught", "ga")
    ]
    assert run("bench", "report", out, "--json").out == found
    code, _, err = run("bench", "facts", out)
    assert code == 2
    assert f"--out {out}" in err
    code, _, err = run("bench", "report", out, "--metrics", "rogue1")
    assert code == 2
    assert "unknown metric 'rogue1'; did you mean rouge1" in err
    code, _, err = run(*words, "--seeds", "one")
    assert code == 2
    assert "--seeds takes whole numbers with commas, got 'one'" in err


def test_a_bench_of_which_a_cell_failed_says_so(run, tiny_folder, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr("expunge.data.suites.PISTOL_TEACHING", QUICK_TEACHING)
    monkeypatch.setattr("expunge.bench.seed.run_method", failing)
    groups = [{"prompt": e.prompt, "response": e.response, "group": "AB"[n % 2]} for n, e in enumerate(FACTS)]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, groups)))
    words = ["bench", "facts", "--model", tiny_folder, "--data", tmp_path / "facts.jsonl", "--forget-group", "A"]
    code, text, err = run(*words, "--methods", "ga", "--regimes", "published", "--out", tmp_path / "bench")
    assert code == 1
    assert "RuntimeError: no room" in text
    assert "1 of 3 cells failed (ga published (seed 0))" in err


def test_an_interrupted_bench_says_what_is_kept(run, tiny_folder, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("expunge.bench.runner.bench_run", interrupted)
    code, _, err = run("bench", "pistol", "--model", tiny_folder, "--out", tmp_path / "out")
    assert code == 1
    assert "finished cells are kept, and the same command goes on" in err


def test_methods_and_pistol(run, tmp_path):
    code, text, _ = run("methods", "--json")
    assert code == 0
    assert "lunar" in json.loads(text)
    code, _, _ = run("data", "pistol", "--sales", 2, "--employment", 1, "--out", tmp_path / "p.jsonl")
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert set(rows[0]) == {"edge", "question", "answer"}
    assert run("data", "pistol", "--out", tmp_path / "p.jsonl")[0] == 2


# ---------------------------------------------------------------- bad input


def assert_refused(run, words, message, out=None):
    code, text, err = run(*words)
    assert code == 2, err
    assert message in err
    assert text == ""
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    if out is not None:
        assert not Path(out).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": "none.jsonl"}, "no such file: none.jsonl"),
        ({"forget": None}, "nothing to forget"),
        ({"retain": "FORGET"}, f"forget and retain share {len(FORGET)} row"),
    ],
)
def test_bad_data(run, tiny_folder, files, tmp_path, change, message):
    used = {r: (files["forget"] if f == "FORGET" else f) for r, f in (files | change).items() if f}
    words = ["unlearn", tiny_folder, "--out", tmp_path / "o", *[w for r, f in used.items() for w in (f"--{r}", f)]]
    assert_refused(run, words, message, tmp_path / "o")


def test_groups_that_do_not_exist_name_those_that_do(run, tiny_folder, tmp_path):
    assert run("data", "pistol", "--sales", 2, "--employment", 0, "--out", tmp_path / "p.jsonl")[0] == 0
    words = ["unlearn", tiny_folder, "--data", tmp_path / "p.jsonl", "--out", tmp_path / "o"]
    assert_refused(run, [*words, "--forget-group", "Z_Z"], "no group 'Z_Z'; groups: A_B", tmp_path / "o")
    assert_refused(run, words, "--data needs --forget-group", tmp_path / "o")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "layers=[77]"], "layer 77 is out of range: the model has layers 0 to 5"),
        (["--set", "coeficient=2"], "no setting 'coeficient'; did you mean coefficient"),
        (["--set", "coefficient"], "--set takes key=value"),
        (["--set", "ridge=-1"], "ridge"),
        (["--method", "lunr"], "unknown method 'lunr'; did you mean lunar"),
        (["--dtype", "int3"], "dtype"),
        (["--limit", "0"], "limit"),
        (["--config", "none.yaml"], "no such file: none.yaml"),
        (["--set", "evaluation.nothing=1"], "evaluation.nothing"),
    ],
)
def test_bad_settings(run, tiny_folder, files, tmp_path, words, message):
    assert_refused(run, unlearn_words(tiny_folder, files, tmp_path / "o", *words), message, tmp_path / "o")


def test_an_unknown_flag_is_wrong_usage(run):
    code, _, err = run("unlearn", "x", "--no-such-flag")
    assert code == 2
    assert "--no-such-flag" in err


def test_folders_and_files_that_are_no_model(run, files, tmp_path):
    assert_refused(run, ["doctor", tmp_path], "is not a model: it has no config.json")
    assert_refused(run, ["doctor", tmp_path / "none"], "no such folder")
    assert_refused(run, ["doctor", files["forget"]], "is a file; a model is")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert_refused(run, ["doctor", tmp_path / "m"], "cannot load")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 100)
    assert_refused(run, ["doctor", tmp_path / "cut.gguf"], "cannot load")
    assert_refused(run, ["doctor", tmp_path / "none.gguf"], "no such file")


def test_an_output_folder_in_use_needs_overwrite(run, tiny_folder, files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    code, _, err = run(*unlearn_words(tiny_folder, files, out))
    assert code == 2
    assert "--overwrite" in err
    assert (out / "mine.txt").read_text() == "mine"
    assert run(*unlearn_words(tiny_folder, files, out, "--overwrite"))[0] == 0
    assert not (out / "mine.txt").exists()


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["probe_abstention", "evaluate", "run_method", "write_checkpoint"])
def test_an_interrupt_in_any_stage_leaves_nothing_and_resume_goes_on(
    run, tiny_folder, files, tmp_path, monkeypatch, stage
):
    places = {
        "probe_abstention": "expunge.methods.abstention.probe_abstention",
        "evaluate": "expunge.evaluation.scores.evaluate",
        "run_method": "expunge.methods.run_method",
        "write_checkpoint": "expunge.checkpoint.write_checkpoint",
    }
    out = tmp_path / "out"

    with monkeypatch.context() as patch:
        patch.setattr(places[stage], interrupted)
        code, _, err = run(*unlearn_words(tiny_folder, files, out))
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("error: interrupted; nothing was written")
    assert not out.exists()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]
    calls = []
    import expunge.evaluation.scores as scores

    monkeypatch.setattr(scores, "evaluate", lambda *a, **k: calls.append(1) or evaluate(*a, **k))
    assert run(*unlearn_words(tiny_folder, files, out, "--resume"))[0] == 0
    assert len(calls) == {"probe_abstention": 2, "evaluate": 2, "run_method": 1, "write_checkpoint": 0}[stage]
    assert (out / "SHA256SUMS").is_file()


def test_resume_does_not_take_up_what_another_checkpoint_of_the_same_name_gave(
    run, tiny_folder, files, tmp_path, monkeypatch
):
    import expunge.evaluation.scores as scores

    model, out, calls = tmp_path / "model", tmp_path / "out", []
    shutil.copytree(tiny_folder, model)
    monkeypatch.setattr(scores, "evaluate", lambda *a, **k: calls.append(1) or evaluate(*a, **k))
    with monkeypatch.context() as patch:
        patch.setattr("expunge.checkpoint.write_checkpoint", interrupted)
        assert run(*unlearn_words(model, files, out))[0] == 1
    assert len(calls) == 2
    weights = model / "model.safetensors"
    time = weights.stat().st_mtime_ns + 10**9
    os.utime(weights, ns=(time, time))  # as trained again
    assert run(*unlearn_words(model, files, out, "--resume"))[0] == 0
    assert len(calls) == 4


def test_a_full_disk_is_one_clear_line_and_nothing_half_written(tiny_folder, files, tmp_path):
    """A limit on file size stands in for the full disk: the same failing write, in another process."""
    out = tmp_path / "out"
    words = [str(w) for w in unlearn_words(tiny_folder, files, out)]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        [sys.executable, "-c", "from expunge.cli import main; main()", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"EXPUNGE_CACHE": str(tmp_path / "cache")},
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "nothing was written" in done.stderr.splitlines()[-1]
    assert not out.exists()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys; sys.argv = ['expunge', '--help']\ntry:\n from expunge.cli import main; main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_lists_every_verb_and_each_has_its_own(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert run("--help")[1] == out
    assert set(typer.main.get_group(verbs.app).commands) == set(VERBS)
    for verb, summary in VERBS.items():
        assert summary.split()[0] in out.split(f"  {verb} ")[1]
        code, own, _ = run(verb, "--help")
        assert code == 0
        assert " ".join(summary.split()) in " ".join(own.split())
    assert run("data") == run("data", "--help")
    assert "pistol" in run("data")[1]
    code, _, err = run("unlern")
    assert code == 2
    assert err == "error: No such command 'unlern'. Did you mean 'unlearn'? --help lists what there is\n"
    code, _, err = run("doctor")
    assert code == 2
    assert err == "error: Missing argument 'model'. --help lists what there is\n"


def test_a_flag_that_was_not_given_leaves_the_demos_own_setting():
    spec = demo_spec({"evaluation.max_new_tokens": None, "evaluation.batch_size": 8})
    assert (spec.evaluation.max_new_tokens, spec.evaluation.batch_size) == (24, 8)


def test_the_demos_flags_reach_its_run(run, monkeypatch):
    seen = []

    def interrupted(spec, reporter):
        seen.append(spec)
        raise InputError("no further")

    monkeypatch.setattr("expunge.run.unlearn_run", interrupted)
    assert run("demo", "--mixed-precision", "bf16", "--device", "cpu", "--seed", "3")[0] == 2
    (spec,) = seen
    assert (spec.model.name, spec.model.mixed_precision, spec.model.device, spec.seed) == ("smollm2", "bf16", "cpu", 3)
    assert run("demo", "--mixed-precision", "fp8")[0] == 2
    assert len(seen) == 1


def test_the_demo_of_a_subject_fits_no_row_of_the_examples():
    spec = demo_spec({"reveal.subject": "William Shakespeare"})
    assert spec.data.forget is None
    assert spec.data.retain is None
    assert spec.data.paraphrase.endswith("forget.jsonl")
    assert not spec.settings  # the demo's were chosen on rows that judge here
    assert demo_spec({"reveal.subject": "Ada Lin"}).data.paraphrase is None
