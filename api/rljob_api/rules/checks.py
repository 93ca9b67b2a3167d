"""What crosses fields: everything that is wrong with a job whose fields, each by itself, are right.

The CLI says it beforehand, the operator as `Accepted=False`, the trainer before it starts, and the apiserver at
admission as far as CEL can: the CRD is generated from the same `RULES`.
"""

from itertools import groupby

from rljob_api.errors import Problem
from rljob_api.rules import lifecycle, mode, rollout, sizes, training
from rljob_api.rules.availability import unavailable
from rljob_api.rules.rule import SpecRule, objects
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

__all__ = ["RULES", "Problem", "check", "check_spec", "inconsistent"]

RULES: tuple[SpecRule, ...] = (
    *mode.NEEDED_SECTIONS,
    *sizes.BATCHES,
    *sizes.PARALLELISM,
    *sizes.GPUS,
    *sizes.PLACEMENT,
    *sizes.LENGTHS,
    *training.MODEL,
    *training.CODE,
    *lifecycle.QUEUES,
    *training.SFT,
    *training.ALGORITHM,
    *rollout.GENERATE,
    *rollout.ROLLOUT,
    *mode.GENERATE_ONLY,
    *rollout.REWARD,
    *rollout.RETRIEVER,
    *rollout.AUTOSCALING,
    *rollout.EVALUATION,
    *lifecycle.CHECKPOINT,
    *lifecycle.EARLY_STOP,
    *lifecycle.PODS,
    *training.DATA,
)
"""All rules, in the order in which problems are reported."""

_BY_PLACE = tuple((at, tuple(rules)) for at, rules in groupby(RULES, key=lambda rule: rule.at))


def check(job: RLJob) -> list[Problem]:
    """All that keeps this job from running: what contradicts itself, and what this version does not do yet."""
    return check_spec(job.spec)


def check_spec(spec: RLJobSpec) -> list[Problem]:
    """As `check`, of a spec alone. Never raises."""
    refused = list(unavailable(spec))
    paths = {problem.path for problem in refused}
    return [*refused, *(problem for problem in inconsistent(spec) if problem.path not in paths)]


def inconsistent(spec: RLJobSpec) -> list[Problem]:
    """What contradicts itself, whatever the version can do; all of one element of a list before the next."""
    return [
        problem
        for at, rules in _BY_PLACE
        for path, owner in objects(spec, at)
        for rule in rules
        for problem in rule.problems(spec, path, owner)
    ]
