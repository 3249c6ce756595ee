"""The verb `evaluate`: roles of a user's rows, and what else a model can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .data.examples import ForgetTask, read_examples, split_group
from .data.files import text_of
from .errors import InputError
from .progress import Reporter
from .spec import AbilitySpec, RunSpec

if TYPE_CHECKING:
    from .evaluation.scores import Evaluation
    from .models.loading import ChatModel


def evaluate_run(spec: RunSpec, abilities: AbilitySpec, reporter: Reporter) -> Evaluation:
    """Evaluates the roles for which a file is given, and the abilities that are asked for."""
    from .evaluation.refusal import add_refusal_and_coherence
    from .evaluation.scores import JUDGED, Evaluation, evaluate
    from .models.loading import load

    roles: dict[str, Any] = {}
    if spec.data.data:
        rows = read_examples(spec.data.data, spec.data.limit)
        if spec.data.forget_group:
            roles["forget"], roles["retain"] = split_group(rows, spec.data.forget_group, spec.data.data)
        else:
            roles["general"] = rows
    for role in JUDGED:
        if name := getattr(spec.data, role):
            roles[role] = read_examples(name, spec.data.limit)
    if not roles and abilities == AbilitySpec():
        raise InputError("nothing to evaluate: pass --forget, --retain, --general or another role's file, or --mmlu N")
    task = ForgetTask(**roles)
    chat = load(spec.model, reporter)
    result = Evaluation()
    if roles:
        with reporter.stage("evaluate", sum(len(r) for r in roles.values())) as advance:
            result = evaluate(chat, task, **spec.evaluation.model_dump(), progress=advance)
    if answers := result.answers.get("forget"):
        add_refusal_and_coherence(result, chat, answers)
    _add_abilities(result, chat, abilities, reporter)
    return result


def _add_abilities(found: Evaluation, chat: ChatModel, spec: AbilitySpec, reporter: Reporter) -> None:
    """Accuracies and perplexity by name."""
    from .data.abilities import gsm8k, mmlu
    from .evaluation import abilities, harness, likelihood

    if spec.mmlu:
        questions, solved = mmlu(spec.mmlu)
        with reporter.stage("mmlu", len(questions)) as advance:
            found.add("mmlu", abilities.choice_accuracy(chat, questions, solved, advance))
    if spec.gsm8k:
        problems = gsm8k(spec.gsm8k)
        with reporter.stage("gsm8k", len(problems)) as advance:
            found.add("gsm8k", abilities.gsm8k_accuracy(chat, problems, progress=advance))
    if spec.text:
        with reporter.stage("perplexity"):
            found["perplexity"] = likelihood.perplexity(chat, text_of(spec.text))
    if spec.lm_eval:
        with reporter.stage("lm-eval"):
            tasks = harness.harness(chat, spec.lm_eval, spec.lm_eval_limit)
        found |= {f"{task} {metric}": value for task, values in tasks.items() for metric, value in values.items()}
