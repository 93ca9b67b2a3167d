"""Rules within one section of the spec: pieces that need or exclude one another."""

from collections import Counter
from collections.abc import Callable, Iterator

from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.manifest.arithmetic import generates, trains_rl
from rljob_api.manifest.errors import Problem
from rljob_api.v1alpha1.hub_path import PREFIX, parse_hub_path
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_api.v1alpha1.retriever import RETRIEVER_DIR, RetrieverSpec

CODE_LIMIT = 512 * 1024
"""Characters of all of `spec.code.files` together: they travel in a ConfigMap, which holds 1 MiB at most."""


def _model(spec: RLJobSpec) -> Iterator[Problem]:
    model, init = spec.model, spec.model.random_init
    if (model.path is None) == (init is None):
        yield Problem("spec.model", "give exactly one of path and randomInit")
    if init is not None:
        if model.tokenizer_path is None:
            yield Problem("spec.model.tokenizerPath", "required with spec.model.randomInit")
        if init.hidden_size % (2 * init.num_attention_heads):
            yield Problem(
                "spec.model.randomInit.numAttentionHeads",
                f"{init.num_attention_heads} heads do not split hiddenSize {init.hidden_size} into an even width each "
                "(rotary embeddings turn pairs)",
            )
        if init.num_attention_heads % init.num_key_value_heads:
            yield Problem(
                "spec.model.randomInit.numKeyValueHeads",
                f"{init.num_key_value_heads} does not divide numAttentionHeads {init.num_attention_heads}",
            )
    if model.source.type == "persistentVolumeClaim" and model.source.claim_name is None:
        yield Problem("spec.model.source.claimName", "required with source type persistentVolumeClaim")
    if model.source.type == "objectStore" and model.source.uri is None:
        yield Problem("spec.model.source.uri", "required with source type objectStore")


def _code(spec: RLJobSpec) -> Iterator[Problem]:
    code = spec.code
    given = [
        name
        for name, present in (
            ("files", bool(code.files)),
            ("configMap", code.config_map is not None),
            ("persistentVolumeClaim", code.persistent_volume_claim is not None),
            ("git", code.git is not None),
            ("imagePath", code.image_path is not None),
        )
        if present
    ]
    if len(given) > 1:
        yield Problem("spec.code", f"at most one source, but {', '.join(given)} are given")
    size = sum(len(content) for content in code.files.values())
    if size > CODE_LIMIT:
        yield Problem("spec.code.files", f"{size} characters in all; at most {CODE_LIMIT}")


def _gang(spec: RLJobSpec) -> Iterator[Problem]:
    gang = spec.lifecycle.gang
    if gang and gang.scheduler == "kai-scheduler" and gang.queue is None:
        yield Problem(
            "spec.lifecycle.gang.queue",
            "required with scheduler kai-scheduler, which leaves pods without a queue pending",
        )
    if gang and gang.scheduler == "scheduler-plugins" and gang.queue is not None:
        yield Problem(
            "spec.lifecycle.gang.queue", f"{gang.queue} cannot be used: scheduler-plugins (coscheduling) has no queues"
        )


def _queue(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.lifecycle.queue and spec.rollout.autoscaling:
        yield Problem(
            "spec.rollout.autoscaling",
            f"cannot be used with spec.lifecycle.queue ({spec.lifecycle.queue.name}): Kueue admits an attempt with the "
            "engines that it asks for; give spec.rollout.replicas",
        )


def _sft(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.sft and (spec.sft.num_steps is None) == (spec.sft.num_epochs is None):
        yield Problem("spec.sft", "give exactly one of numSteps and numEpochs")


def _algorithm(spec: RLJobSpec) -> Iterator[Problem]:
    if not trains_rl(spec):
        return
    algorithm, tis = spec.algorithm, spec.algorithm.tis
    compares = algorithm.custom_advantages is None and ESTIMATORS[algorithm.advantage_estimator].compares_group
    if compares and spec.rollout.n_samples_per_prompt < 2:
        yield Problem(
            "spec.rollout.nSamplesPerPrompt",
            f"{algorithm.advantage_estimator} compares the samples of a prompt and needs at least 2, "
            f"but it is {spec.rollout.n_samples_per_prompt}",
        )
    if algorithm.eps_clip >= 1:
        yield Problem("spec.algorithm.epsClip", f"{algorithm.eps_clip:g} is not below 1")
    if algorithm.dual_clip is not None and algorithm.dual_clip <= 1:
        yield Problem("spec.algorithm.dualClip", f"{algorithm.dual_clip:g} is not above 1")
    if algorithm.dual_clip is not None and algorithm.policy_loss != "ppo_clip":
        yield Problem("spec.algorithm.dualClip", f"is for policyLoss ppo_clip, but it is {algorithm.policy_loss}")
    if tis.enabled and not spec.rollout.return_logprobs:
        yield Problem("spec.algorithm.tis", "needs the engine's log-probabilities: set spec.rollout.returnLogprobs")
    if tis.enabled and tis.lower_bound > tis.upper_bound:
        yield Problem("spec.algorithm.tis.lowerBound", f"{tis.lower_bound:g} is above upperBound {tis.upper_bound:g}")


def _generate(spec: RLJobSpec) -> Iterator[Problem]:
    generate, search = spec.rollout.generate, spec.rollout.generate.search
    if generate.type == "custom" and generate.function is None:
        yield Problem("spec.rollout.generate.function", "required with generate type custom")
    if generate.type != "custom" and generate.function is not None:
        yield Problem("spec.rollout.generate.function", f"is for generate type custom, but the type is {generate.type}")
    yield from _tools(spec)
    if not generates(spec) or generate.type != "search":
        return
    if search.backend == "local" and spec.retriever is None and search.url is None:
        yield Problem("spec.retriever", "required for searches, or give spec.rollout.generate.search.url")
    if search.backend == "google" and search.google is None:
        yield Problem("spec.rollout.generate.search.google", "required with search backend google")


def _tools(spec: RLJobSpec) -> Iterator[Problem]:
    tools = spec.rollout.generate.tools.functions
    path = "spec.rollout.generate.tools.functions"
    for index, tool in enumerate(tools):
        if (tool.url is None) == (tool.function is None):
            yield Problem(f"{path}[{index}]", "give exactly one of url and function")
        if tool.token is not None and tool.url is None:
            yield Problem(f"{path}[{index}].token", "is for a tool with a url")
    for name, count in Counter(tool.name for tool in tools).items():
        if count > 1:
            yield Problem(path, f"{name} stands {count} times; names are unique")
    if not generates(spec) or spec.rollout.generate.type != "tools":
        return
    if not tools:
        yield Problem(path, "at least one is required with generate type tools")
    prompts = [("spec.data.train", spec.data.train)] if spec.data.train else []
    for where, dataset in [
        *prompts,
        *((f"spec.evaluation.datasets[{i}]", dataset) for i, dataset in enumerate(spec.evaluation.datasets)),
    ]:
        if not dataset.apply_chat_template:
            yield Problem(f"{where}.applyChatTemplate", "tools are offered through the chat template; leave it on")


def _rollout(spec: RLJobSpec) -> Iterator[Problem]:
    rollout, sampling = spec.rollout, spec.rollout.sampling
    if sampling.max_tokens_per_turn is not None and sampling.max_tokens_per_turn > sampling.max_response_length:
        yield Problem(
            "spec.rollout.sampling.maxTokensPerTurn",
            f"{sampling.max_tokens_per_turn} is above maxResponseLength {sampling.max_response_length}",
        )
    if rollout.over_sampling_batch_size is not None and rollout.over_sampling_batch_size < rollout.batch_size:
        yield Problem(
            "spec.rollout.overSamplingBatchSize",
            f"{rollout.over_sampling_batch_size} is below batchSize {rollout.batch_size}",
        )
    elif rollout.partial_rollout and (rollout.over_sampling_batch_size or 0) <= rollout.batch_size:
        yield Problem(
            "spec.rollout.partialRollout",
            f"has no effect unless overSamplingBatchSize is above batchSize {rollout.batch_size}: when the batch is "
            "full, nothing is unfinished",
        )


def _generate_only(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.mode != "Generate":
        return
    if spec.rollout.dynamic_filter is not None:
        yield Problem("spec.rollout.dynamicFilter", "is for training; a generate-only job filters by spec.output")
    if spec.rollout.over_sampling_batch_size is not None:
        yield Problem("spec.rollout.overSamplingBatchSize", "is for training; a generate-only job takes every prompt")


def _reward(spec: RLJobSpec) -> Iterator[Problem]:
    functions = spec.reward.functions if spec.reward else []
    for index, function in enumerate(functions):
        path = f"spec.reward.functions[{index}]"
        if function.name == "custom" and function.function is None:
            yield Problem(f"{path}.function", "required with name custom")
        if function.name != "custom" and function.function is not None:
            yield Problem(f"{path}.function", f"is for name custom, but the name is {function.name}")
        if function.name == "remote" and function.url is None:
            yield Problem(f"{path}.url", "required with name remote")
        for field, given in (("url", function.url), ("token", function.token)):
            if function.name != "remote" and given is not None:
                yield Problem(f"{path}.{field}", f"is for name remote, but the name is {function.name}")
    for label, count in Counter(function.label or function.name for function in functions).items():
        if count > 1:
            yield Problem("spec.reward.functions", f"{label} stands {count} times; tell them apart by label")


def _retriever(spec: RLJobSpec) -> Iterator[Problem]:
    retriever = spec.retriever
    if retriever is None:
        return
    yield from _retriever_storage(spec, retriever)
    if retriever.gpus == 0:
        if retriever.index.gpu:
            yield Problem("spec.retriever.index.gpu", "needs GPUs, but spec.retriever.gpus is 0")
        if retriever.encoder.device == "cuda":
            yield Problem("spec.retriever.encoder.device", "cuda needs GPUs, but spec.retriever.gpus is 0")


def _retriever_storage(spec: RLJobSpec, retriever: RetrieverSpec) -> Iterator[Problem]:
    """What lies in the retriever's own claim is there for the retriever alone."""
    paths = {"corpus": retriever.corpus, "index.path": retriever.index.path, "encoder.path": retriever.encoder.path}
    within = {field: path for field, path in paths.items() if f"{path}/".startswith(f"{RETRIEVER_DIR}/")}
    if retriever.storage is None:
        for field, path in within.items():
            yield Problem(f"spec.retriever.{field}", f"{path} is in the retriever's own claim; give retriever.storage")
        return
    if not within:
        yield Problem("spec.retriever.storage", f"nothing is read from it; give paths below {RETRIEVER_DIR}")
    if spec.evaluation.without_retriever and "corpus" in within:
        yield Problem(
            "spec.evaluation.withoutRetriever",
            "the driver reads the corpus for it, which is in the retriever's own claim; keep the corpus in the job's",
        )


def _autoscaling(spec: RLJobSpec) -> Iterator[Problem]:
    scaled = {"rollout": spec.rollout.autoscaling, "retriever": spec.retriever.autoscaling if spec.retriever else None}
    for section, scaling in scaled.items():
        if scaling and scaling.min_replicas > scaling.max_replicas:
            yield Problem(
                f"spec.{section}.autoscaling.minReplicas",
                f"{scaling.min_replicas} is above maxReplicas {scaling.max_replicas}",
            )


def _evaluation(spec: RLJobSpec) -> Iterator[Problem]:
    for name, count in Counter(dataset.name for dataset in spec.evaluation.datasets).items():
        if count > 1:
            yield Problem("spec.evaluation.datasets", f"{name} stands {count} times; names are unique")
    if spec.evaluation.without_retriever and spec.retriever is None:
        yield Problem("spec.evaluation.withoutRetriever", "needs spec.retriever")


def _checkpoint(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.checkpoint.warm_start is not None and spec.checkpoint.load is not None:
        yield Problem("spec.checkpoint", "give at most one of load and warmStart")


def _lifecycle(spec: RLJobSpec) -> Iterator[Problem]:
    stop, where = spec.lifecycle.early_stop, "spec.lifecycle.earlyStop"
    if stop is None:
        return
    if (stop.at_least is None) == (stop.at_most is None):
        yield Problem(where, "give exactly one of atLeast and atMost")
    kind, _, rest = stop.metric.partition("/")
    if kind == "evaluation":
        names = [dataset.name for dataset in spec.evaluation.datasets]
        if rest.split("/")[0] not in names:
            known = ", ".join(names) or "none"
            yield Problem(f"{where}.metric", f"{stop.metric} names no evaluation set; there are: {known}")
        elif spec.evaluation.interval == 0:
            yield Problem(f"{where}.metric", f"{stop.metric} is never measured: set spec.evaluation.interval")


def _pods(spec: RLJobSpec) -> Iterator[Problem]:
    groups = [
        ("spec.trainer.pod", spec.trainer.pod),
        ("spec.trainer.headPod", spec.trainer.head_pod),
        ("spec.rollout.pod", spec.rollout.pod),
    ]
    if spec.retriever:
        groups.append(("spec.retriever.pod", spec.retriever.pod))
    for path, pod in groups:
        for index, variable in enumerate(pod.env):
            if (variable.value is None) == (variable.secret_key_ref is None):
                yield Problem(f"{path}.env[{index}]", f"{variable.name}: give exactly one of value and secretKeyRef")
            if variable.name.startswith("RLJOB_"):
                yield Problem(
                    f"{path}.env[{index}].name", f"{variable.name}: names that begin with RLJOB_ are the operator's"
                )
        for name, count in Counter(variable.name for variable in pod.env).items():
            if count > 1:
                yield Problem(f"{path}.env", f"{name} stands {count} times; names are unique")


def _hub_paths(spec: RLJobSpec) -> Iterator[Problem]:
    paths = {} if spec.data.train is None else {"spec.data.train.path": spec.data.train.path}
    if spec.sft is not None:
        paths["spec.sft.dataset.path"] = spec.sft.dataset.path
    for number, dataset in enumerate(spec.evaluation.datasets):
        paths[f"spec.evaluation.datasets[{number}].path"] = dataset.path
    for field, path in paths.items():
        if path.startswith(PREFIX):
            try:
                parse_hub_path(path)
            except ValueError as error:
                yield Problem(field, str(error))


SECTION_CHECKS: tuple[Callable[[RLJobSpec], Iterator[Problem]], ...] = (
    _model,
    _code,
    _gang,
    _queue,
    _sft,
    _algorithm,
    _generate,
    _rollout,
    _generate_only,
    _reward,
    _retriever,
    _autoscaling,
    _evaluation,
    _checkpoint,
    _lifecycle,
    _pods,
    _hub_paths,
)
