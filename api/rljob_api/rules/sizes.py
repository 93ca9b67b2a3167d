"""What must add up: batches, ranks, GPUs and lengths."""

from rljob_api.catalogue.backends import BACKENDS
from rljob_api.catalogue.engines import ENGINES
from rljob_api.rules.expression import choose, field, has
from rljob_api.rules.mode import GENERATES, PROMPTS, RL, TRAINS
from rljob_api.rules.rule import Rule, text

_PROMPTS_PER_ROLLOUT, _SAMPLES_PER_PROMPT = field("rollout.batchSize"), field("rollout.nSamplesPerPrompt")
_SAMPLES = _PROMPTS_PER_ROLLOUT * _SAMPLES_PER_PROMPT
_SAMPLES_IN_WORDS = "spec.rollout.batchSize × spec.rollout.nSamplesPerPrompt = {} × {} = {} samples per rollout, "
_SAMPLES_MADE = (_PROMPTS_PER_ROLLOUT, _SAMPLES_PER_PROMPT, _SAMPLES)
_BATCH, _STEPS = field("trainer.globalBatchSize"), field("trainer.numStepsPerRollout")
_HAS_BATCH, _HAS_STEPS = has("trainer.globalBatchSize"), has("trainer.numStepsPerRollout")

BATCHES = (
    Rule(
        "spec",
        (_HAS_BATCH & _HAS_STEPS).implies(_BATCH * _STEPS == _SAMPLES),
        text(
            _SAMPLES_IN_WORDS
            + "but globalBatchSize × numStepsPerRollout = {} × {} = {}; leave one of the two out to have it computed",
            *_SAMPLES_MADE,
            _BATCH,
            _STEPS,
            _BATCH * _STEPS,
        ),
        "trainer.globalBatchSize",
        when=RL,
    ),
    Rule(
        "spec",
        (_HAS_BATCH & ~_HAS_STEPS).implies(_SAMPLES % _BATCH == 0),
        text(_SAMPLES_IN_WORDS + "not a multiple of globalBatchSize {}", *_SAMPLES_MADE, _BATCH),
        "trainer.globalBatchSize",
        when=RL,
    ),
    Rule(
        "spec",
        (_HAS_STEPS & ~_HAS_BATCH).implies(_SAMPLES % _STEPS == 0),
        text(_SAMPLES_IN_WORDS + "not a multiple of numStepsPerRollout {}", *_SAMPLES_MADE, _STEPS),
        "trainer.numStepsPerRollout",
        when=RL,
    ),
)
_SAMPLES_PER_STEP = choose(_HAS_BATCH, _BATCH, _SAMPLES // choose(_HAS_STEPS, _STEPS, 1))
_BATCHES_ADD_UP = BATCHES[0].must & BATCHES[1].must & BATCHES[2].must

_REPLICAS, _GPUS_PER_REPLICA = field("trainer.replicas"), field("trainer.gpusPerReplica")
_RANKS_PER_REPLICA = choose(_GPUS_PER_REPLICA > 0, _GPUS_PER_REPLICA, field("trainer.ranksPerReplica"))
_RANKS = _REPLICAS * _RANKS_PER_REPLICA
_TENSOR, _PIPELINE, _CONTEXT_PARALLEL, _EXPERT = (
    field(f"trainer.parallelism.{name}") for name in ("tensor", "pipeline", "context", "expert")
)
_MODEL_PARALLEL = _TENSOR * _PIPELINE * _CONTEXT_PARALLEL
_DATA_PARALLEL = _RANKS // _MODEL_PARALLEL

WHOLE_COPIES = Rule(
    "spec",
    _RANKS % _MODEL_PARALLEL == 0,
    text(
        "tensor × pipeline × context = {} × {} × {} = {} does not divide the {} trainer ranks ({} replicas × {})",
        _TENSOR,
        _PIPELINE,
        _CONTEXT_PARALLEL,
        _MODEL_PARALLEL,
        _RANKS,
        _REPLICAS,
        _RANKS_PER_REPLICA,
    ),
    "trainer.parallelism",
    when=TRAINS,
)
"""The ranks hold whole copies of the model."""

PARALLELISM = (
    Rule(
        "spec.trainer.parallelism",
        field("tensor") > 1,
        text("needs tensor > 1, but tensor is {}", field("tensor")),
        "sequence",
        when=field("sequence"),
        python_when=TRAINS,
    ),
    WHOLE_COPIES,
    Rule(
        "spec",
        _DATA_PARALLEL % _EXPERT == 0,
        text("{} does not divide the data-parallel size {}", _EXPERT, _DATA_PARALLEL),
        "trainer.parallelism.expert",
        when=TRAINS & WHOLE_COPIES.must,
    ),
    Rule(
        "spec",
        _SAMPLES_PER_STEP % _DATA_PARALLEL == 0,
        text(
            "{} samples per optimizer step cannot be shared equally by {} data-parallel ranks",
            _SAMPLES_PER_STEP,
            _DATA_PARALLEL,
        ),
        "trainer.globalBatchSize",
        when=RL & WHOLE_COPIES.must,
        python_when=_BATCHES_ADD_UP,
    ),
    Rule(
        "spec",
        field("sft.batchSize") % _DATA_PARALLEL == 0,
        text(
            "{} rows per optimizer step cannot be shared equally by {} data-parallel ranks",
            field("sft.batchSize"),
            _DATA_PARALLEL,
        ),
        "sft.batchSize",
        when=TRAINS & has("sft") & WHOLE_COPIES.must,
    ),
)

_ENGINES, _GPUS_PER_ENGINE = field("rollout.replicas"), field("rollout.gpusPerEngine")
_ROLLOUT_GPUS, _TRAINER_GPUS = _ENGINES * _GPUS_PER_ENGINE, _REPLICAS * _GPUS_PER_REPLICA
_COLOCATED = TRAINS & (field("placement.type") == "colocated")
_GPU_ENGINES = [entry.name for entry in ENGINES.values() if entry.needs_gpus]
_CPU_ENGINES = [entry.name for entry in ENGINES.values() if not entry.needs_gpus]
_GPU_BACKENDS = [entry.name for entry in BACKENDS.values() if entry.needs_gpus]
_CPU_BACKENDS = [entry.name for entry in BACKENDS.values() if not entry.needs_gpus]

GPUS = (
    Rule(
        "spec",
        _GPUS_PER_REPLICA > 0,
        text(
            f"{{}} needs GPUs, but spec.trainer.gpusPerReplica is 0; use {' or '.join(_CPU_BACKENDS)} on CPU",
            field("trainer.backend"),
        ),
        "trainer.backend",
        when=TRAINS & field("trainer.backend").one_of(*_GPU_BACKENDS),
    ),
    Rule(
        "spec.trainer",
        field("ranksPerReplica") == 1,
        text(
            "{} is for CPU; with gpusPerReplica {} there is one rank per GPU",
            field("ranksPerReplica"),
            field("gpusPerReplica"),
        ),
        "ranksPerReplica",
        when=field("gpusPerReplica") > 0,
        python_when=TRAINS,
    ),
    Rule(
        "spec.trainer",
        ~has("megatronArgs"),
        text("has no effect with backend {}; remove it", field("backend")),
        "megatronArgs",
        when=field("backend") != "megatron",
        python_when=TRAINS,
    ),
    Rule(
        "spec",
        _GPUS_PER_ENGINE > 0,
        text(
            f"{{}} needs GPUs, but spec.rollout.gpusPerEngine is 0; use {' or '.join(_CPU_ENGINES)} on CPU",
            field("rollout.engine"),
        ),
        "rollout.engine",
        when=GENERATES & field("rollout.engine").one_of(*_GPU_ENGINES) & ~_COLOCATED,
    ),
    Rule(
        "spec",
        _ROLLOUT_GPUS == _TRAINER_GPUS,
        text(
            "colocated engines use the trainer's GPUs: spec.rollout.replicas × gpusPerEngine = {} × {} = {}, "
            "but the trainer has {} × {} = {}; leave gpusPerEngine out",
            _ENGINES,
            _GPUS_PER_ENGINE,
            _ROLLOUT_GPUS,
            _REPLICAS,
            _GPUS_PER_REPLICA,
            _TRAINER_GPUS,
        ),
        "rollout.gpusPerEngine",
        when=GENERATES & _COLOCATED & (_GPUS_PER_ENGINE > 0),
    ),
    Rule(
        "spec",
        field("model.dtype") != "float16",
        "float16 needs GPUs; use float32 on CPU",
        "model.dtype",
        when=TRAINS & (_GPUS_PER_REPLICA == 0),
    ),
)

PLACEMENT = (
    Rule(
        "spec.placement",
        field("type") == "async",
        text("is for placement type async, but the type is {}", field("type")),
        "maxStaleness",
        when=has("maxStaleness"),
    ),
    Rule(
        "spec.placement",
        field("type") == "colocated",
        text("is for placement type colocated, but the type is {}", field("type")),
        "offloadTrainer",
        when=field("offloadTrainer"),
    ),
)

_MAX_CONTEXT, _MAX_PROMPT = field("rollout.maxContextLength"), field("data.train.maxPromptLength")
_LONGEST_ROLLOUT = choose(
    has("rollout.maxContextLength"), _MAX_CONTEXT, _MAX_PROMPT + field("rollout.sampling.maxResponseLength")
)
_POSITIONS = field("model.randomInit.maxPositionEmbeddings")

LENGTHS = (
    Rule(
        "spec",
        _MAX_CONTEXT > _MAX_PROMPT,
        text("{} leaves no room for a response after spec.data.train.maxPromptLength {}", _MAX_CONTEXT, _MAX_PROMPT),
        "rollout.maxContextLength",
        when=has("rollout.maxContextLength") & PROMPTS,
    ),
    Rule(
        "spec",
        _LONGEST_ROLLOUT <= _POSITIONS,
        text(
            "{} is below the longest rollout of {} tokens (spec.rollout.maxContextLength, or "
            "data.train.maxPromptLength + rollout.sampling.maxResponseLength)",
            _POSITIONS,
            _LONGEST_ROLLOUT,
        ),
        "model.randomInit.maxPositionEmbeddings",
        when=RL & has("model.randomInit") & PROMPTS,
    ),
    Rule(
        "spec",
        field("sft.maxSequenceLength") <= _POSITIONS,
        text("{} is above spec.model.randomInit.maxPositionEmbeddings {}", field("sft.maxSequenceLength"), _POSITIONS),
        "sft.maxSequenceLength",
        when=TRAINS & has("model.randomInit") & has("sft"),
    ),
)
