"""Expressions say the same in CEL and in Python, and rules say it of the right field."""

from typing import Any

import pytest
from rljob_api.errors import FieldError, Problem
from rljob_api.rules.checks import RULES, inconsistent
from rljob_api.rules.expression import (
    Expression,
    all_differ,
    choose,
    field,
    filled,
    has,
    how_many,
    total_length,
)
from rljob_api.rules.rule import PythonRule, Rule, Unique, objects, text
from rljob_api.rules.sizes import BATCHES
from rljob_api.v1alpha1.job import RLJob, RLJobSpec


def spec(**sections: Any) -> RLJobSpec:
    body = {"model": {"path": "m"}, **sections}
    return RLJob.model_validate({"metadata": {"name": "j"}, "spec": body}).spec


BATCH, STEPS = field("trainer.globalBatchSize"), field("trainer.numStepsPerRollout")
PROMPTS, GROUP = field("rollout.batchSize"), field("rollout.nSamplesPerPrompt")
JOB = spec(
    rollout={"batchSize": 7, "nSamplesPerPrompt": 5},
    trainer={"globalBatchSize": 3, "pod": {"env": [{"name": "RLJOB_A", "value": "b"}]}},
    code={"files": {"a.py": "four", "b.py": "é"}},
    reward={"functions": [{"name": "em"}, {"name": "math", "label": "em"}]},
)
"""35 samples in steps of 3."""


@pytest.mark.parametrize(
    ("expression", "cel", "value"),
    [
        (BATCH * PROMPTS % 4, "self.trainer.globalBatchSize * self.rollout.batchSize % 4", 1),
        (BATCH * (PROMPTS % 4), "self.trainer.globalBatchSize * (self.rollout.batchSize % 4)", 9),
        (BATCH * (PROMPTS + 4), "self.trainer.globalBatchSize * (self.rollout.batchSize + 4)", 33),
        (2 * BATCH + PROMPTS, "2 * self.trainer.globalBatchSize + self.rollout.batchSize", 13),
        (PROMPTS // BATCH, "self.rollout.batchSize / self.trainer.globalBatchSize", 2),
        ((PROMPTS > 6) == (GROUP > 6), "(self.rollout.batchSize > 6) == (self.rollout.nSamplesPerPrompt > 6)", False),
        (
            (PROMPTS < 6) | (GROUP <= 5) & (PROMPTS != 7),
            "self.rollout.batchSize < 6 || self.rollout.nSamplesPerPrompt <= 5 && self.rollout.batchSize != 7",
            False,
        ),
        (
            ((PROMPTS < 6) | (GROUP <= 5)) & (PROMPTS >= 7),
            "(self.rollout.batchSize < 6 || self.rollout.nSamplesPerPrompt <= 5) && self.rollout.batchSize >= 7",
            True,
        ),
        (~(PROMPTS == 7), "!(self.rollout.batchSize == 7)", False),
        (
            has("trainer.numStepsPerRollout").implies(STEPS > 1),
            "!has(self.trainer.numStepsPerRollout) || self.trainer.numStepsPerRollout > 1",
            True,
        ),
        (has("retriever") & (field("retriever.gpus") > 0), "has(self.retriever) && self.retriever.gpus > 0", False),
        (has("trainer.megatronArgs"), "has(self.trainer.megatronArgs)", False),
        (
            ~filled("evaluation.datasets"),
            "!(has(self.evaluation.datasets) && self.evaluation.datasets.size() > 0)",
            True,
        ),
        (
            choose(has("sft"), "sft", choose(PROMPTS > 6, "many", "few")),
            "has(self.sft) ? 'sft' : self.rollout.batchSize > 6 ? 'many' : 'few'",
            "many",
        ),
        (choose(has("sft"), 1, BATCH) * 2, "(has(self.sft) ? 1 : self.trainer.globalBatchSize) * 2", 6),
        (
            ~field("rollout.engine").one_of("torch", "other"),
            "!(self.rollout.engine in ['torch', 'other'])",
            JOB.rollout.engine != "torch",
        ),
        (field("algorithm.epsClip") < 1.0, "self.algorithm.epsClip < 1.0", True),
        (
            how_many([has("sft"), has("reward"), has("data")]),
            "[has(self.sft), has(self.reward), has(self.data)].filter(given, given).size()",
            2,
        ),
        (total_length("code.files"), "self.code.files.map(name, self.code.files[name].size()).sum()", 5),
        (
            all_differ("reward.functions", lambda of: choose(has("label", of), field("label", of), field("name", of))),
            "self.reward.functions.all(a, self.reward.functions.exists_one(b, "
            "(has(a.label) ? a.label : a.name) == (has(b.label) ? b.label : b.name)))",
            False,
        ),
    ],
)
def test_an_expression_in_both_languages(expression: Expression, cel: str, value: object) -> None:
    assert expression.cel == cel
    assert expression.value(JOB) == value


def test_comparisons_without_parentheses_are_refused_where_they_are_written() -> None:
    with pytest.raises(TypeError, match="put comparisons in parentheses"):
        bool(PROMPTS > 1 and GROUP > 1)


def test_every_rule_is_about_an_object_and_a_field_of_the_spec() -> None:
    job = spec(
        model={"randomInit": {}, "tokenizerPath": "t"},
        sft={"dataset": {"path": "d"}, "numSteps": 1},
        retriever={"corpus": "c", "index": {"path": "i"}, "autoscaling": {"maxReplicas": 2}},
        rollout={
            "autoscaling": {"maxReplicas": 2},
            "pod": {"env": [{"name": "A"}]},
            "generate": {"tools": {"functions": [{"name": "t"}]}},
        },
        reward={"functions": [{"name": "em"}]},
        trainer={"pod": {"env": [{"name": "A"}]}, "headPod": {"env": [{"name": "A"}]}},
        lifecycle={"gang": {"scheduler": "volcano"}, "earlyStop": {"metric": "reward/mean"}},
    )
    job.retriever.pod.env = job.rollout.pod.env  # type: ignore[union-attr]
    for rule in RULES:
        ((path, owner),) = objects(job, rule.at)
        assert path.replace("[0]", "[]") == rule.at
        if not isinstance(rule, PythonRule):
            field(rule.field_path or "model_fields_set").value(owner)


def test_of_a_list_one_element_is_judged_after_the_other() -> None:
    env = [{"name": "RLJOB_A"}, {"name": "RLJOB_A"}]
    said = [problem for problem in inconsistent(spec(trainer={"pod": {"env": env}})) if ".env" in problem.path]
    path = "spec.trainer.pod.env"
    both, ours = "RLJOB_A: give exactly one of value and secretKeyRef", "RLJOB_A: names that begin with RLJOB_ are"
    assert [(problem.path, problem.message[: len(ours)]) for problem in said] == [
        (f"{path}[0]", both[: len(ours)]),
        (f"{path}[0].name", ours),
        (f"{path}[1]", both[: len(ours)]),
        (f"{path}[1].name", ours),
        (path, "RLJOB_A stands 2 times; names are unique"[: len(ours)]),
    ]


def test_a_rule_for_the_crd_says_what_python_says() -> None:
    low, high = field("minReplicas"), field("maxReplicas")
    rule = Rule(
        "spec.rollout.autoscaling",
        low <= high,
        text("{} is above {}", low, high),
        "minReplicas",
        when=has("maxReplicas"),
    )
    validation = rule.validation()
    assert validation
    assert validation.to_schema() == {
        "rule": "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        "messageExpression": '"%s is above %s".format([self.minReplicas, self.maxReplicas])',
        "message": "… is above …",
        "fieldPath": ".minReplicas",
    }
    job = spec(rollout={"autoscaling": {"minReplicas": 4, "maxReplicas": 2}})
    ((path, owner),) = objects(job, rule.at)
    assert list(rule.problems(job, path, owner)) == [Problem("spec.rollout.autoscaling.minReplicas", "4 is above 2")]


def test_rules_of_python_alone_are_not_in_the_crd() -> None:
    assert Rule("spec", has("sft"), "required", admission=False).validation() is None
    assert Unique("spec.evaluation", "datasets").validation() is None
    with pytest.raises(TypeError, match="admission_says"):
        Rule("spec", has("sft"), lambda _: "required").validation()


def test_arithmetic_is_refused_in_the_rules_words() -> None:
    with pytest.raises(FieldError, match="7 × 5 = 35 samples per rollout, not a multiple of globalBatchSize 3"):
        BATCHES[1].require(JOB)
