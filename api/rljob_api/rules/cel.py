"""The CEL rules of the CRD: what crosses fields, refused at admission in the words of `checks.py`.

A rule sits on the nearest object that holds all the fields it reads, never on the root (but for the rules that
compare with the status), so that status stays writable after an upgrade of the CRD. Availability is not here: see
`availability.py`.
"""

from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.rules.cel_rule import Rule
from rljob_api.rules.cel_sections import SECTION_RULES

_TRAIN = "self.mode == 'Train'"
_RL = "self.mode == 'Train' && self.algorithm.type == 'rl'"
_GENERATES = (
    "(self.mode != 'Train' || self.algorithm.type == 'rl' || "
    "(has(self.evaluation.datasets) && self.evaluation.datasets.size() > 0))"
)
_SAMPLES = "self.rollout.batchSize * self.rollout.nSamplesPerPrompt"
_MADE = (
    "spec.rollout.batchSize × spec.rollout.nSamplesPerPrompt = "
    f"{{self.rollout.batchSize}} × {{self.rollout.nSamplesPerPrompt}} = {{{_SAMPLES}}}"
)
_BATCH = "self.trainer.globalBatchSize"
_STEPS = "self.trainer.numStepsPerRollout"
_RANKS = "(self.trainer.gpusPerReplica > 0 ? self.trainer.gpusPerReplica : self.trainer.ranksPerReplica)"
_WORLD = f"(self.trainer.replicas * {_RANKS})"
_PROMPTS = "(has(self.data) && has(self.data.train))"
_PARALLEL = "self.trainer.parallelism"
_COPY = f"({_PARALLEL}.tensor * {_PARALLEL}.pipeline * {_PARALLEL}.context)"
_COPIES = f"({_WORLD} / {_COPY})"
_RESOLVED = f"(has({_BATCH}) ? {_BATCH} : {_SAMPLES} / (has({_STEPS}) ? {_STEPS} : 1))"
_TRAINER_GPUS = "(self.trainer.replicas * self.trainer.gpusPerReplica)"
_ROLLOUT_GPUS = "(self.rollout.replicas * self.rollout.gpusPerEngine)"
_COLOCATED = "(self.mode == 'Train' && self.placement.type == 'colocated')"
_CONTEXT = (
    "(has(self.rollout.maxContextLength) ? self.rollout.maxContextLength : "
    "self.data.train.maxPromptLength + self.rollout.sampling.maxResponseLength)"
)
_COMPARING = [entry.name for entry in ESTIMATORS.values() if entry.compares_group]

_SPEC_RULES = (
    Rule(
        "spec",
        f"!({_RL} && has({_BATCH}) && has({_STEPS})) || {_BATCH} * {_STEPS} == {_SAMPLES}",
        f"{_MADE} samples per rollout, but globalBatchSize × numStepsPerRollout = "
        f"{{{_BATCH}}} × {{{_STEPS}}} = {{{_BATCH} * {_STEPS}}}; leave one of the two out to have it computed",
        "trainer.globalBatchSize",
    ),
    Rule(
        "spec",
        f"!({_RL} && has({_BATCH}) && !has({_STEPS})) || ({_SAMPLES}) % {_BATCH} == 0",
        f"{_MADE} samples per rollout, not a multiple of globalBatchSize {{{_BATCH}}}",
        "trainer.globalBatchSize",
    ),
    Rule(
        "spec",
        f"!({_RL} && has({_STEPS}) && !has({_BATCH})) || ({_SAMPLES}) % {_STEPS} == 0",
        f"{_MADE} samples per rollout, not a multiple of numStepsPerRollout {{{_STEPS}}}",
        "trainer.numStepsPerRollout",
    ),
    Rule(
        "spec",
        "!(self.mode == 'Train' && self.algorithm.type == 'sft') || has(self.sft)",
        "required when spec.algorithm.type is sft",
        "sft",
        required=True,
    ),
    Rule("spec", f"!({_RL}) || has(self.reward)", "required for reinforcement learning", "reward", required=True),
    Rule(
        "spec",
        "self.mode == 'Train' || has(self.reward)",
        "required to evaluate or generate",
        "reward",
        required=True,
    ),
    Rule(
        "spec",
        f"!({_RL}) || {_PROMPTS}",
        "required for reinforcement learning",
        "data.train",
        required=True,
    ),
    Rule("spec", f"self.mode != 'Generate' || {_PROMPTS}", "required to generate", "data.train", required=True),
    Rule(
        "spec",
        "self.mode != 'Evaluate' || (has(self.evaluation.datasets) && self.evaluation.datasets.size() > 0)",
        "at least one data set is required to evaluate",
        "evaluation.datasets",
        required=True,
    ),
    Rule(
        "spec",
        "!(self.mode == 'Train' && self.algorithm.type == 'sft' && has(self.evaluation.datasets) && "
        "self.evaluation.datasets.size() > 0) || has(self.reward)",
        "required to score spec.evaluation.datasets",
        "reward",
        required=True,
    ),
    Rule(
        "spec",
        f"!({_TRAIN}) || {_WORLD} % {_COPY} == 0",
        f"tensor × pipeline × context = {{{_PARALLEL}.tensor}} × {{{_PARALLEL}.pipeline}} × {{{_PARALLEL}.context}} = "
        f"{{{_COPY}}} does not divide the {{{_WORLD}}} trainer ranks "
        f"({{self.trainer.replicas}} replicas × {{{_RANKS}}})",
        "trainer.parallelism",
    ),
    Rule(
        "spec",
        f"!({_TRAIN}) || {_WORLD} % {_COPY} != 0 || {_COPIES} % {_PARALLEL}.expert == 0",
        f"{{{_PARALLEL}.expert}} does not divide the data-parallel size {{{_COPIES}}}",
        "trainer.parallelism.expert",
    ),
    Rule(
        "spec",
        f"!({_RL}) || {_WORLD} % {_COPY} != 0 || {_RESOLVED} % {_COPIES} == 0",
        f"{{{_RESOLVED}}} samples per optimizer step cannot be shared equally by {{{_COPIES}}} data-parallel ranks",
        "trainer.globalBatchSize",
    ),
    Rule(
        "spec",
        f"!({_TRAIN} && has(self.sft)) || {_WORLD} % {_COPY} != 0 || self.sft.batchSize % {_COPIES} == 0",
        f"{{self.sft.batchSize}} rows per optimizer step cannot be shared equally by {{{_COPIES}}} data-parallel ranks",
        "sft.batchSize",
    ),
    Rule(
        "spec",
        f"!({_GENERATES} && self.rollout.engine == 'sglang' && !{_COLOCATED}) || self.rollout.gpusPerEngine > 0",
        "sglang needs GPUs, but spec.rollout.gpusPerEngine is 0; use torch on CPU",
        "rollout.engine",
    ),
    Rule(
        "spec",
        f"!({_GENERATES} && {_COLOCATED} && self.rollout.gpusPerEngine > 0) || {_ROLLOUT_GPUS} == {_TRAINER_GPUS}",
        "colocated engines use the trainer's GPUs: spec.rollout.replicas × gpusPerEngine = "
        f"{{self.rollout.replicas}} × {{self.rollout.gpusPerEngine}} = {{{_ROLLOUT_GPUS}}}, but the trainer has "
        f"{{self.trainer.replicas}} × {{self.trainer.gpusPerReplica}} = {{{_TRAINER_GPUS}}}; leave gpusPerEngine out",
        "rollout.gpusPerEngine",
    ),
    Rule(
        "spec",
        f"!({_TRAIN} && self.trainer.backend == 'megatron') || self.trainer.gpusPerReplica > 0",
        "megatron needs GPUs, but spec.trainer.gpusPerReplica is 0; use fsdp on CPU",
        "trainer.backend",
    ),
    Rule(
        "spec",
        f"!({_TRAIN} && self.trainer.gpusPerReplica == 0) || self.model.dtype != 'float16'",
        "float16 needs GPUs; use float32 on CPU",
        "model.dtype",
    ),
    Rule(
        "spec",
        f"!({_RL} && self.algorithm.tis.enabled) || self.rollout.returnLogprobs",
        "needs the engine's log-probabilities: set spec.rollout.returnLogprobs",
        "algorithm.tis",
    ),
    Rule(
        "spec",
        f"!({_RL} && !has(self.algorithm.customAdvantages) && self.algorithm.advantageEstimator in {_COMPARING}) || "
        "self.rollout.nSamplesPerPrompt >= 2",
        "{self.algorithm.advantageEstimator} compares the samples of a prompt and needs at least 2, "
        "but it is {self.rollout.nSamplesPerPrompt}",
        "rollout.nSamplesPerPrompt",
    ),
    Rule(
        "spec",
        f"!({_GENERATES} && self.rollout.generate.type == 'search' && self.rollout.generate.search.backend == 'local')"
        " || has(self.retriever) || has(self.rollout.generate.search.url)",
        "required for searches, or give spec.rollout.generate.search.url",
        "retriever",
        required=True,
    ),
    Rule(
        "spec",
        f"!({_GENERATES} && self.rollout.generate.type == 'search' && self.rollout.generate.search.backend == 'google')"
        " || has(self.rollout.generate.search.google)",
        "required with search backend google",
        "rollout.generate.search.google",
        required=True,
    ),
    Rule(
        "spec",
        "self.mode != 'Generate' || !has(self.rollout.dynamicFilter)",
        "is for training; a generate-only job filters by spec.output",
        "rollout.dynamicFilter",
    ),
    Rule(
        "spec",
        "self.mode != 'Generate' || !has(self.rollout.overSamplingBatchSize)",
        "is for training; a generate-only job takes every prompt",
        "rollout.overSamplingBatchSize",
    ),
    Rule(
        "spec",
        "!has(self.rollout.autoscaling) || !has(self.lifecycle.queue)",
        "cannot be used with spec.lifecycle.queue ({self.lifecycle.queue.name}): Kueue admits an attempt with the "
        "engines that it asks for; give spec.rollout.replicas",
        "rollout.autoscaling",
    ),
    Rule(
        "spec",
        "!self.evaluation.withoutRetriever || has(self.retriever)",
        "needs spec.retriever",
        "evaluation.withoutRetriever",
    ),
    Rule(
        "spec",
        f"!(has(self.rollout.maxContextLength) && {_PROMPTS}) || "
        "self.rollout.maxContextLength > self.data.train.maxPromptLength",
        "{self.rollout.maxContextLength} leaves no room for a response after "
        "spec.data.train.maxPromptLength {self.data.train.maxPromptLength}",
        "rollout.maxContextLength",
    ),
    Rule(
        "spec",
        f"!({_RL} && has(self.model.randomInit) && {_PROMPTS}) || "
        f"{_CONTEXT} <= self.model.randomInit.maxPositionEmbeddings",
        f"{{self.model.randomInit.maxPositionEmbeddings}} is below the longest rollout of {{{_CONTEXT}}} tokens "
        "(spec.rollout.maxContextLength, or data.train.maxPromptLength + rollout.sampling.maxResponseLength)",
        "model.randomInit.maxPositionEmbeddings",
    ),
    Rule(
        "spec",
        f"!({_TRAIN} && has(self.model.randomInit) && has(self.sft)) || "
        "self.sft.maxSequenceLength <= self.model.randomInit.maxPositionEmbeddings",
        "{self.sft.maxSequenceLength} is above spec.model.randomInit.maxPositionEmbeddings "
        "{self.model.randomInit.maxPositionEmbeddings}",
        "sft.maxSequenceLength",
    ),
)

RULES: tuple[Rule, ...] = (*_SPEC_RULES, *SECTION_RULES)

MUTABLE = (
    "rollout.replicas",
    "rollout.autoscaling",
    "retriever.replicas",
    "retriever.autoscaling",
    "lifecycle.suspend",
    "lifecycle.suspendTimeoutSeconds",
    "lifecycle.backoffLimit",
    "lifecycle.backoffReset",
    "lifecycle.failureRules",
    "lifecycle.activeDeadlineSeconds",
    "lifecycle.ttlSecondsAfterFinished",
    "lifecycle.health",
    "lifecycle.earlyStop",
    "lifecycle.stall",
)
"""Fields of the spec that may change once the first attempt has started."""
GROWING = ("storage.size", "retriever.storage.size")
"""Quantities that may then grow, and no more: the size of a claim."""

_STARTED = "has(oldSelf.status) && has(oldSelf.status.attempt) && oldSelf.status.attempt > 0"


def presence(section: str) -> Rule:
    """The rule that a section of which some fields may change stays, or stays away, once the job has started."""
    return Rule(
        "",
        _once_started(section, f"has(self.spec.{section}) == has(oldSelf.spec.{section})"),
        "cannot come or go once the job has started; create a job of another name, or delete this one first",
        f"spec.{section}",
    )


def immutability(path: str, *, scalar: bool) -> Rule:
    """The rule that keeps `spec.<path>` as it is once the job has started; of a scalar, it names both values."""
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    same = f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
    values = f": it is {{{old}}}, not {{{new}}}" if scalar else ""
    return Rule(
        "",
        _once_started(path, same),
        f"cannot change once the job has started{values}; create a job of another name, or delete this one first",
        f"spec.{path}",
    )


def growth(path: str) -> Rule:
    """The rule that the quantity `spec.<path>`, which is always there with its section, never shrinks once the job has
    started."""
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    return Rule(
        "",
        _once_started(path, f"quantity({new}).compareTo(quantity({old})) >= 0"),
        f"may grow, not shrink, once the job has started: it is {{{old}}}, not {{{new}}}",
        f"spec.{path}",
    )


def _once_started(path: str, held: str) -> str:
    """The condition that `held` is true of a job that has started, where the sections around `spec.<path>` are there
    before and after."""
    parts = path.split(".")
    parents = [f"has(self.spec.{'.'.join(parts[:end])})" for end in range(1, len(parts))]
    guard = " && ".join(parents + [parent.replace("self.", "oldSelf.", 1) for parent in parents])
    return f"!({_STARTED}) || ({f'!({guard}) || ({held})' if guard else held})"
