"""Rules of how a job is run: queues, checkpoints, early stopping, pods."""

from collections.abc import Iterator

from rljob_api.errors import Problem
from rljob_api.rules.expression import field, has
from rljob_api.rules.rule import PythonRule, Rule, SpecRule, Unique, text
from rljob_api.v1alpha1.job import RLJobSpec

QUEUES = (
    Rule(
        "spec.lifecycle.gang",
        has("queue"),
        "required with scheduler kai-scheduler, which leaves pods without a queue pending",
        "queue",
        when=field("scheduler") == "kai-scheduler",
        required=True,
    ),
    Rule(
        "spec.lifecycle.gang",
        ~has("queue"),
        text("{} cannot be used: scheduler-plugins (coscheduling) has no queues", field("queue")),
        "queue",
        when=field("scheduler") == "scheduler-plugins",
    ),
    Rule(
        "spec",
        ~has("lifecycle.queue"),
        text(
            "cannot be used with spec.lifecycle.queue ({}): Kueue admits an attempt with the engines that it "
            "asks for; give spec.rollout.replicas",
            field("lifecycle.queue.name"),
        ),
        "rollout.autoscaling",
        when=has("rollout.autoscaling"),
    ),
)

CHECKPOINT = (Rule("spec.checkpoint", ~(has("warmStart") & has("load")), "give at most one of load and warmStart"),)


def _measured(spec: RLJobSpec) -> Iterator[Problem]:
    """The metric of an early stop is one that the job measures."""
    if (stop := spec.lifecycle.early_stop) is None:
        return
    where = "spec.lifecycle.earlyStop.metric"
    kind, _, rest = stop.metric.partition("/")
    if kind == "evaluation":
        names = [dataset.name for dataset in spec.evaluation.datasets]
        if rest.split("/")[0] not in names:
            known = ", ".join(names) or "none"
            yield Problem(where, f"{stop.metric} names no evaluation set; there are: {known}")
        elif spec.evaluation.interval == 0:
            yield Problem(where, f"{stop.metric} is never measured: set spec.evaluation.interval")


EARLY_STOP: tuple[SpecRule, ...] = (
    Rule("spec.lifecycle.earlyStop", has("atLeast") != has("atMost"), "give exactly one of atLeast and atMost"),
    PythonRule(_measured),
)


def _variables(pod: str) -> tuple[SpecRule, ...]:
    """The rules of the environment of one kind of pod."""
    return (
        Rule(
            f"{pod}.env[]",
            has("value") != has("secretKeyRef"),
            text("{}: give exactly one of value and secretKeyRef", field("name")),
        ),
        Rule(
            f"{pod}.env[]",
            ~field("name").starts_with("RLJOB_"),
            text("{}: names that begin with RLJOB_ are the operator's", field("name")),
            "name",
            admission=False,
        ),
        Unique(pod, "env"),
    )


PODS: tuple[SpecRule, ...] = (
    *_variables("spec.trainer.pod"),
    *_variables("spec.trainer.headPod"),
    *_variables("spec.rollout.pod"),
    *_variables("spec.retriever.pod"),
)
