"""What the API has and this version does not do yet. Asked for, it is refused by name rather than ignored.

A table: building a feature ends with deleting its lines. Nothing here is in the CRD, so that an operator of a later
version lifts a refusal without a new CRD.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rljob_api.catalogue.backends import BACKENDS, Backend
from rljob_api.catalogue.engines import ENGINES, Engine
from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.errors import Problem
from rljob_api.rules.arithmetic import engine_gpus, engines_sleep, generates, trainer_gpus, trains, trains_rl
from rljob_api.v1alpha1.job import RLJobSpec


@dataclass(frozen=True, slots=True)
class When:
    """The jobs that a refusal concerns."""

    words: str
    """For people: completes "not available in this version …", with fields in backticks."""
    holds: Callable[[RLJobSpec], bool]
    """Whether a job is one of them. A part of a job that is not used is not looked at."""


ALWAYS = When("always", lambda spec: True)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """One refusal: a field, the values of it that are refused, and what to use instead."""

    path: str
    """Path below `spec`, dotted, camelCase; `[]` after a list stands for each of its elements."""
    values: tuple[object, ...] | range | None = None
    """Refused values; None: any value that is set and is neither false, nor empty, nor zero."""
    use: str = ""
    """What to write instead."""
    when: When = ALWAYS
    """The jobs in which it is refused."""

    def refuses(self, value: object) -> bool:
        """Whether a value of the field asks for what is not there."""
        return value in self.values if self.values is not None else bool(value) or value == {}


def _colocated_elsewhere(spec: RLJobSpec) -> bool:
    """Colocated without GPUs, or on several with an engine that knows one."""
    gpus = trainer_gpus(spec)
    return trains(spec) and (gpus == 0 or (gpus > 1 and ONE_GPU.holds(spec)))


def _uneven(spec: RLJobSpec) -> bool:
    """Colocated engines that do not have whole shares of each trainer pod's GPUs."""
    if not engines_sleep(spec):
        return False
    each = engine_gpus(spec)
    even = each * spec.rollout.replicas == trainer_gpus(spec)
    return not even or each == 0 or spec.trainer.gpus_per_replica % each != 0


def _async(spec: RLJobSpec) -> bool:
    return trains_rl(spec) and spec.placement.type == "async"


def _engines(which: Callable[[Engine], bool]) -> tuple[str, ...]:
    return tuple(engine.name for engine in ENGINES.values() if which(engine))


def _backends(which: Callable[[Backend], bool]) -> When:
    """Jobs that train with one of the backends that `which` holds of."""
    names = tuple(backend.name for backend in BACKENDS.values() if which(backend))
    return When(f"with {_named('trainer.backend', names)}", lambda spec: trains(spec) and spec.trainer.backend in names)


def _named(field: str, names: Iterable[str]) -> str:
    return " or ".join(f"`{field}: {name}`" for name in names)


_ONE_GPU = _engines(lambda engine: not engine.tensor_parallel)
ONE_GPU = When(
    f"with {_named('rollout.engine', _ONE_GPU)}", lambda spec: generates(spec) and spec.rollout.engine in _ONE_GPU
)
DATA_PARALLEL = _backends(lambda backend: not backend.model_parallel)
BFLOAT16 = _backends(lambda backend: not backend.float32)
ALSO_FLOAT32 = _backends(lambda backend: backend.float32)
NO_CRITIC = _backends(lambda backend: not backend.critic)
WHOLE_LAYERS = _backends(lambda backend: not backend.partial_recompute)
KEEPS_OPTIMIZER = _backends(lambda backend: not backend.offloads_optimizer)
ASYNC = When("with `placement.type: async`", _async)
COLOCATED_ELSEWHERE = When(
    f"with `trainer.gpusPerReplica: 0`, or {ONE_GPU.words} and a trainer of several GPUs", _colocated_elsewhere
)
UNEVEN = When(
    f"with {_named('rollout.engine', _engines(lambda engine: engine.sleeps))} and `placement.type: colocated`, where "
    "GPUs of a trainer pod cannot be shared out evenly among engines",
    _uneven,
)

TABLE: tuple[Unavailable, ...] = (
    # Model
    Unavailable("model.source.type", ("objectStore",), "use auto, hub, path or persistentVolumeClaim"),
    Unavailable("model.attentionImplementation", ("flash_attention_2", "flash_attention_3"), "use sdpa"),
    Unavailable("model.dtype", ("float16",), "use bfloat16, or float32 on CPU", when=ALSO_FLOAT32),
    Unavailable("model.dtype", ("float32", "float16"), "use bfloat16", when=BFLOAT16),
    # Code
    Unavailable("code.git", use="use code.files, code.configMap or code.persistentVolumeClaim"),
    Unavailable("code.pipRequirements", use="install the packages in an image and name it in images.trainer"),
    # Algorithm
    Unavailable(
        "algorithm.advantageEstimator",
        tuple(entry.name for entry in ESTIMATORS.values() if entry.needs_values),
        "use grpo, or the backend fsdp",
        when=NO_CRITIC,
    ),
    # Rollout
    Unavailable("rollout.gpusPerEngine", range(2, 65), "use 1 and more replicas, or the engine sglang", when=ONE_GPU),
    Unavailable(
        "rollout.replicas",
        use="colocated SGLang engines have equal shares of the trainer's GPUs, each within one pod: "
        "trainer.gpusPerReplica must be a multiple of gpusPerEngine",
        when=UNEVEN,
    ),
    Unavailable("rollout.overSamplingBatchSize", use="placement.maxStaleness says how far ahead it runs", when=ASYNC),
    Unavailable(
        "rollout.partialRollout", use="what is under way goes on with the next weights, without it", when=ASYNC
    ),
    # Trainer
    *(
        Unavailable(
            f"trainer.parallelism.{degree}",
            range(2, 1025),
            "use 1 (data parallelism alone), or the backend megatron",
            when=DATA_PARALLEL,
        )
        for degree in ("tensor", "pipeline", "context", "expert")
    ),
    Unavailable(
        "trainer.recompute.granularity", ("selective",), "use full or none, or the backend megatron", when=WHOLE_LAYERS
    ),
    Unavailable("trainer.recompute.method", ("block",), "use uniform, or the backend megatron", when=WHOLE_LAYERS),
    Unavailable(
        "trainer.recompute.numLayers",
        range(2, 2**31),
        "use 1 (every layer by itself), or the backend megatron",
        when=WHOLE_LAYERS,
    ),
    Unavailable("optimizer.offload", use="use megatronArgs, or the backend fsdp", when=KEEPS_OPTIMIZER),
    Unavailable("sft.optimizer.offload", use="use megatronArgs, or the backend fsdp", when=KEEPS_OPTIMIZER),
    Unavailable("placement.type", ("colocated",), "use disaggregated, or SGLang on GPUs", when=COLOCATED_ELSEWHERE),
    # Retriever
    Unavailable("retriever.gpus", use="use 0 (CPU)"),
    Unavailable("retriever.index.gpu", use="leave it out (CPU)"),
    Unavailable("retriever.encoder.device", ("cuda",), "use cpu"),
)


def unavailable(spec: RLJobSpec) -> Iterator[Problem]:
    """Each thing that the job asks for and this version does not do."""
    tree = spec.to_api()
    for entry in TABLE:
        if not entry.when.holds(spec):
            continue
        for path, value in _lookup(tree, entry.path.split("."), "spec"):
            if entry.refuses(value):
                yield Problem(path, _sentence(value, entry))


def _sentence(value: object, entry: Unavailable) -> str:
    named = f"{value} is" if isinstance(value, str | int | float) and not isinstance(value, bool) else "is"
    when = "" if entry.when is ALWAYS else f" {entry.when.words.replace('`', '')}"
    return f"{named} not available in this version{when}{f'; {entry.use}' if entry.use else ''}"


def _lookup(tree: Any, keys: list[str], path: str) -> Iterable[tuple[str, Any]]:
    """Values under a dotted path, with their full paths; nothing where a part is unset."""
    if not keys:
        yield path, tree
        return
    key, rest = keys[0], keys[1:]
    name = key.removesuffix("[]")
    if not isinstance(tree, dict) or name not in tree:
        return
    child = tree[name]
    if key.endswith("[]"):
        for index, element in enumerate(child):
            yield from _lookup(element, rest, f"{path}.{name}[{index}]")
    else:
        yield from _lookup(child, rest, f"{path}.{name}")
