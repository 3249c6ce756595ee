"""Tasks of lm-eval on a pico model; without the extra, one clear line."""

from __future__ import annotations

import importlib.util
import json

import pytest

from expunge.errors import ExpungeError, InputError
from expunge.evaluation.harness import _numbers, harness


def test_numbers_keep_the_filter_in_their_names():
    values = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": 0.1,
        "exact_match,flexible-extract": 0.5,
        "acc,none": 1,
        "acc_stderr,none": "N/A",
    }
    assert _numbers(values) == {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5, "acc": 1.0}


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_extra_it_says_what_to_install(pico):
    with pytest.raises(InputError, match=r"pip install 'expunge\[eval\]'"):
        harness(pico("llama"), ["arc_easy"])


def test_a_task_of_ones_own(pico, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is an extra: eval")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"q": f"{n} and {n}?", "choices": ["a", "b"], "gold": n % 2}) + "\n" for n in range(6))
    )
    task = tmp_path / "own.yaml"
    task.write_text(
        "task: own_task\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {rows}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    found = harness(pico("llama"), [str(task)], limit=4)
    assert found["own_task"]["acc"] in {0.0, 0.25, 0.5, 0.75, 1.0}
    rows.unlink()
    with pytest.raises(ExpungeError, match="could not run own_task"):
        harness(pico("llama"), [str(task)])
    with pytest.raises(InputError, match="no task 'nothing_like_it'"):
        harness(pico("llama"), ["nothing_like_it"])
    with pytest.raises(InputError, match="is not a task of lm-eval"):
        harness(pico("llama"), [str(tmp_path / "none.yaml")])
