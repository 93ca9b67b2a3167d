"""Rules within the sections of training: model, code, data, SFT, algorithm."""

from collections.abc import Iterator

from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.errors import Problem
from rljob_api.rules.expression import field, filled, has, how_many, total_length
from rljob_api.rules.mode import RL
from rljob_api.rules.rule import PythonRule, Rule, text
from rljob_api.v1alpha1.code import CodeSpec
from rljob_api.v1alpha1.hub_path import PREFIX, parse_hub_path
from rljob_api.v1alpha1.job import RLJobSpec

MODEL = (
    Rule("spec.model", has("path") != has("randomInit"), "give exactly one of path and randomInit"),
    Rule(
        "spec.model",
        has("tokenizerPath"),
        "required with spec.model.randomInit",
        "tokenizerPath",
        when=has("randomInit"),
        required=True,
    ),
    Rule(
        "spec.model.randomInit",
        field("hiddenSize") % (2 * field("numAttentionHeads")) == 0,
        text(
            "{} heads do not split hiddenSize {} into an even width each (rotary embeddings turn pairs)",
            field("numAttentionHeads"),
            field("hiddenSize"),
        ),
        "numAttentionHeads",
    ),
    Rule(
        "spec.model.randomInit",
        field("numAttentionHeads") % field("numKeyValueHeads") == 0,
        text("{} does not divide numAttentionHeads {}", field("numKeyValueHeads"), field("numAttentionHeads")),
        "numKeyValueHeads",
    ),
    Rule(
        "spec.model.source",
        has("claimName"),
        "required with source type persistentVolumeClaim",
        "claimName",
        when=field("type") == "persistentVolumeClaim",
        required=True,
    ),
    Rule(
        "spec.model.source",
        has("uri"),
        "required with source type objectStore",
        "uri",
        when=field("type") == "objectStore",
        required=True,
    ),
)

CODE_LIMIT = 512 * 1024
"""Characters of all of `spec.code.files` together: they travel in a ConfigMap, which holds 1 MiB at most."""
_SOURCES = {
    "files": filled("files"),
    "configMap": has("configMap"),
    "persistentVolumeClaim": has("persistentVolumeClaim"),
    "git": has("git"),
    "imagePath": has("imagePath"),
}


def _too_many_sources(code: CodeSpec) -> str:
    given = [name for name, condition in _SOURCES.items() if condition.value(code)]
    return f"at most one source, but {', '.join(given)} are given"


CODE = (
    Rule(
        "spec.code",
        how_many(_SOURCES.values()) <= 1,
        _too_many_sources,
        admission_says="at most one source of files, configMap, persistentVolumeClaim, git and imagePath",
    ),
    Rule(
        "spec.code",
        total_length("files") <= CODE_LIMIT,
        text(f"{{}} characters in all; at most {CODE_LIMIT}", total_length("files")),
        "files",
        when=has("files"),
    ),
)

SFT = (Rule("spec.sft", has("numSteps") != has("numEpochs"), "give exactly one of numSteps and numEpochs"),)

_COMPARING = [entry.name for entry in ESTIMATORS.values() if entry.compares_group]

ALGORITHM = (
    Rule(
        "spec",
        field("rollout.nSamplesPerPrompt") >= 2,
        text(
            "{} compares the samples of a prompt and needs at least 2, but it is {}",
            field("algorithm.advantageEstimator"),
            field("rollout.nSamplesPerPrompt"),
        ),
        "rollout.nSamplesPerPrompt",
        when=RL & ~has("algorithm.customAdvantages") & field("algorithm.advantageEstimator").one_of(*_COMPARING),
    ),
    Rule(
        "spec.algorithm", field("epsClip") < 1.0, text("{} is not below 1", field("epsClip")), "epsClip", python_when=RL
    ),
    Rule(
        "spec.algorithm",
        field("dualClip") > 1.0,
        text("{} is not above 1", field("dualClip")),
        "dualClip",
        when=has("dualClip"),
        python_when=RL,
    ),
    Rule(
        "spec.algorithm",
        field("policyLoss") == "ppo_clip",
        text("is for policyLoss ppo_clip, but it is {}", field("policyLoss")),
        "dualClip",
        when=has("dualClip") & ~has("customPolicyLoss"),
        python_when=RL,
        admission=False,
    ),
    Rule(
        "spec.algorithm",
        ~has("customPolicyLoss"),
        "is for policyLoss ppo_clip, which customPolicyLoss stands in for: pass it on by customPolicyLoss.args",
        "dualClip",
        when=has("dualClip"),
        python_when=RL,
        admission=False,
    ),
    Rule(
        "spec",
        field("rollout.returnLogprobs"),
        "needs the engine's log-probabilities: set spec.rollout.returnLogprobs",
        "algorithm.tis",
        when=RL & field("algorithm.tis.enabled"),
    ),
    Rule(
        "spec.algorithm.tis",
        field("lowerBound") <= field("upperBound"),
        text("{} is above upperBound {}", field("lowerBound"), field("upperBound")),
        "lowerBound",
        when=field("enabled"),
        python_when=RL,
    ),
)


def _hub_paths(spec: RLJobSpec) -> Iterator[Problem]:
    """Data sets of the Hub are named in full."""
    paths = {} if spec.data.train is None else {"spec.data.train.path": spec.data.train.path}
    if spec.sft is not None:
        paths["spec.sft.dataset.path"] = spec.sft.dataset.path
    for number, dataset in enumerate(spec.evaluation.datasets):
        paths[f"spec.evaluation.datasets[{number}].path"] = dataset.path
    for where, path in paths.items():
        if path.startswith(PREFIX):
            try:
                parse_hub_path(path)
            except ValueError as error:
                yield Problem(where, str(error))


DATA = (PythonRule(_hub_paths),)
