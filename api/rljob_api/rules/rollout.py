"""Rules within the sections of generation: rollout, tools, reward, retriever, evaluation."""

from collections.abc import Iterator

from rljob_api.errors import Problem
from rljob_api.rules.arithmetic import generates
from rljob_api.rules.expression import Expression, choose, field, has
from rljob_api.rules.mode import GENERATES
from rljob_api.rules.rule import PythonRule, Rule, SpecRule, Unique, text
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_api.v1alpha1.retriever import RETRIEVER_DIR


def _offered_tools(spec: RLJobSpec) -> Iterator[Problem]:
    """Generating with tools needs tools, and a chat template to offer them through."""
    if not generates(spec) or spec.rollout.generate.type != "tools":
        return
    if not spec.rollout.generate.tools.functions:
        yield Problem("spec.rollout.generate.tools.functions", "at least one is required with generate type tools")
    prompts = [("spec.data.train", spec.data.train)] if spec.data.train else []
    for where, dataset in [
        *prompts,
        *((f"spec.evaluation.datasets[{i}]", dataset) for i, dataset in enumerate(spec.evaluation.datasets)),
    ]:
        if not dataset.apply_chat_template:
            yield Problem(f"{where}.applyChatTemplate", "tools are offered through the chat template; leave it on")


_SEARCHES = GENERATES & (field("rollout.generate.type") == "search")

GENERATE: tuple[SpecRule, ...] = (
    Rule(
        "spec.rollout.generate",
        has("function"),
        "required with generate type custom",
        "function",
        when=field("type") == "custom",
        required=True,
    ),
    Rule(
        "spec.rollout.generate",
        ~has("function"),
        text("is for generate type custom, but the type is {}", field("type")),
        "function",
        when=field("type") != "custom",
    ),
    Rule(
        "spec.rollout.generate.tools.functions[]",
        has("url") != has("function"),
        "give exactly one of url and function",
    ),
    Rule(
        "spec.rollout.generate.tools.functions[]",
        has("url"),
        "is for a tool with a url",
        "token",
        when=has("token"),
    ),
    Unique("spec.rollout.generate.tools", "functions"),
    PythonRule(_offered_tools),
    Rule(
        "spec",
        has("retriever") | has("rollout.generate.search.url"),
        "required for searches, or give spec.rollout.generate.search.url",
        "retriever",
        when=_SEARCHES & (field("rollout.generate.search.backend") == "local"),
        required=True,
    ),
    Rule(
        "spec",
        has("rollout.generate.search.google"),
        "required with search backend google",
        "rollout.generate.search.google",
        when=_SEARCHES & (field("rollout.generate.search.backend") == "google"),
        required=True,
    ),
)

ROLLOUT = (
    Rule(
        "spec.rollout.sampling",
        field("maxTokensPerTurn") <= field("maxResponseLength"),
        text("{} is above maxResponseLength {}", field("maxTokensPerTurn"), field("maxResponseLength")),
        "maxTokensPerTurn",
        when=has("maxTokensPerTurn"),
    ),
    Rule(
        "spec.rollout",
        field("overSamplingBatchSize") >= field("batchSize"),
        text("{} is below batchSize {}", field("overSamplingBatchSize"), field("batchSize")),
        "overSamplingBatchSize",
        when=has("overSamplingBatchSize"),
    ),
    Rule(
        "spec.rollout",
        has("overSamplingBatchSize") & (field("overSamplingBatchSize") != field("batchSize")),
        text(
            "has no effect unless overSamplingBatchSize is above batchSize {}: when the batch is full, "
            "nothing is unfinished",
            field("batchSize"),
        ),
        "partialRollout",
        when=field("partialRollout"),
    ),
)


def _label(of: str) -> Expression:
    return choose(has("label", of), field("label", of), field("name", of))


REWARD: tuple[SpecRule, ...] = (
    Rule(
        "spec.reward.functions[]",
        has("function"),
        "required with name custom",
        "function",
        when=field("name") == "custom",
        required=True,
    ),
    Rule(
        "spec.reward.functions[]",
        ~has("function"),
        text("is for name custom, but the name is {}", field("name")),
        "function",
        when=field("name") != "custom",
    ),
    Rule("spec.reward.functions[]", has("url"), "required with name remote", "url", when=field("name") == "remote"),
    *(
        Rule(
            "spec.reward.functions[]",
            ~has(name),
            text("is for name remote, but the name is {}", field("name")),
            name,
            when=field("name") != "remote",
        )
        for name in ("url", "token")
    ),
    Unique(
        "spec.reward",
        "functions",
        "tell them apart by label",
        _label,
        admission_says="two have one name; tell them apart by label",
    ),
)


def _retriever_claim(spec: RLJobSpec) -> Iterator[Problem]:
    """What lies in the retriever's own claim is there for the retriever alone."""
    if (retriever := spec.retriever) is None:
        return
    paths = {"corpus": retriever.corpus, "index.path": retriever.index.path, "encoder.path": retriever.encoder.path}
    within = {name: path for name, path in paths.items() if f"{path}/".startswith(f"{RETRIEVER_DIR}/")}
    if retriever.storage is None:
        for name, path in within.items():
            yield Problem(f"spec.retriever.{name}", f"{path} is in the retriever's own claim; give retriever.storage")
        return
    if not within:
        yield Problem("spec.retriever.storage", f"nothing is read from it; give paths below {RETRIEVER_DIR}")
    if spec.evaluation.without_retriever and "corpus" in within:
        yield Problem(
            "spec.evaluation.withoutRetriever",
            "the driver reads the corpus for it, which is in the retriever's own claim; keep the corpus in the job's",
        )


RETRIEVER: tuple[SpecRule, ...] = (
    PythonRule(_retriever_claim),
    Rule(
        "spec.retriever",
        field("gpus") > 0,
        "needs GPUs, but spec.retriever.gpus is 0",
        "index.gpu",
        when=field("index.gpu"),
    ),
    Rule(
        "spec.retriever",
        field("gpus") > 0,
        "cuda needs GPUs, but spec.retriever.gpus is 0",
        "encoder.device",
        when=field("encoder.device") == "cuda",
    ),
)

AUTOSCALING = tuple(
    Rule(
        f"spec.{section}.autoscaling",
        field("minReplicas") <= field("maxReplicas"),
        text("{} is above maxReplicas {}", field("minReplicas"), field("maxReplicas")),
        "minReplicas",
    )
    for section in ("rollout", "retriever")
)

EVALUATION: tuple[SpecRule, ...] = (
    Unique("spec.evaluation", "datasets"),
    Rule(
        "spec",
        has("retriever"),
        "needs spec.retriever",
        "evaluation.withoutRetriever",
        when=field("evaluation.withoutRetriever"),
    ),
)
