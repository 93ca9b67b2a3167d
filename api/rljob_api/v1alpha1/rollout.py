"""`spec.rollout`: how many prompts and samples, how they are sampled, on which engines, with which tools."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.catalogue.engines import ENGINES
from rljob_api.v1alpha1.base import (
    ApiModel,
    FreeMap,
    ImportPath,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretKeyRef,
    ShortStr,
    Url,
    one_of,
)
from rljob_api.v1alpha1.pods import PodOverrides


class SamplingSpec(ApiModel):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.8
    """Softmax temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling: smallest set of tokens with this probability mass."""
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = -1
    """Draw from the k most probable tokens; −1 is all."""
    max_response_length: PositiveInt = 8192
    """Tokens of a response, observations included."""
    max_tokens_per_turn: PositiveInt | None = None
    """Tokens the model may generate in one turn; by default what is left of `maxResponseLength`."""
    stop: Annotated[list[ShortStr], Field(max_length=16)] = Field(default_factory=list)
    """Strings that end a generation; kept in the response."""


class GoogleSearch(ApiModel):
    """Web search through serper.dev's API."""

    api_key: SecretKeyRef
    """API key (read as SERPER_API_KEY)."""
    url: Url = "https://google.serper.dev/search"
    """Address of the search API."""
    snippet_only: bool = True
    """Use the result snippets; off: fetch the pages."""


class SearchSpec(ApiModel):
    """Multi-turn generation with a search tool (Search-R1, Jin et al. 2025)."""

    backend: Literal["local", "google"] = "local"
    """`local`: the job's retriever. `google`: web search."""
    url: Url | None = None
    """Address of a retriever's /retrieve outside the job; by default the job's own."""
    max_turns: PositiveInt = 2
    """Generations a sample may use; a search in the last one is not answered."""
    topk: PositiveInt = 3
    """Documents per query."""
    concurrency: PositiveInt = 256
    """Searches under way at once, over all engines."""
    timeout_seconds: PositiveFloat = 30.0
    """Time limit of one search, retries included."""
    proxy: Url | None = None
    """HTTP proxy for searches."""
    google: GoogleSearch | None = None
    """Settings of the `google` backend."""


class ToolSpec(ApiModel):
    """A tool that the model may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", max_length=64)]
    """Name that the model calls it by."""
    description: Annotated[str, Field(max_length=4096)] = ""
    """What it does, for the model."""
    parameters: FreeMap = Field(default_factory=dict)
    """JSON schema (2020-12) of its arguments, an object. Calls that do not keep to it are told so."""
    url: Url | None = None
    """Endpoint: POST of `{"name", "arguments"}`, answered by `{"result": …}` or text."""
    function: ImportPath | None = None
    """Or: `async def f(arguments, sample) -> str | dict`; see docs/generation.md."""
    token: SecretKeyRef | None = None
    """Bearer token for `url` (read as RLJOB_TOOL_<number>_TOKEN)."""


class ToolsSpec(ApiModel):
    """Multi-turn generation with tools (Hermes and Qwen form: `<tool_call>{"name", "arguments"}</tool_call>`)."""

    functions: Annotated[list[ToolSpec], Field(max_length=32)] = Field(default_factory=list)
    """The tools, offered to the model through the chat template."""
    max_turns: PositiveInt = 8
    """Generations a sample may use; calls in the last one are not answered."""
    concurrency: PositiveInt = 256
    """Calls under way at once, over all engines."""
    timeout_seconds: PositiveFloat = 30.0
    """Time limit of one call, retries included."""
    max_result_length: PositiveInt = 8192
    """Characters of a result that the model is shown."""
    proxy: Url | None = None
    """HTTP proxy for calls."""


class GenerateSpec(ApiModel):
    """How one sample is produced."""

    type: Literal["single_turn", "search", "tools", "custom"] = "single_turn"
    """`single_turn`: one generation. `search`: turns with a search tool. `tools`: turns with tools of yours. `custom`:
    the function below."""
    search: SearchSpec = Field(default_factory=SearchSpec)
    """Settings for `search`."""
    tools: ToolsSpec = Field(default_factory=ToolsSpec)
    """Settings for `tools`."""
    function: ImportPath | None = None
    """For `custom`: `async def f(args, sample, sampling, engine) -> Sample`; see docs/hooks.md."""
    args: FreeMap = Field(default_factory=dict)
    """Keyword arguments of the custom function."""


class Autoscaling(ApiModel):
    """Engines by how long the trainer waits for samples. The operator then sets their number within the bounds."""

    min_replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Fewest engines."""
    max_replicas: Annotated[int, Field(ge=1, le=1024)]
    """Most engines."""
    target_trainer_wait: Annotated[float, Field(ge=0.01, le=0.99)] = 0.5
    """Share of its time that the trainer may wait for samples; above it engines are added, below it taken away."""
    scale_up_seconds: NonNegativeInt = 60
    """An increase is made once it has been called for without a break for so long."""
    scale_down_seconds: NonNegativeInt = 300
    """The same for a decrease."""


class RolloutSpec(ApiModel):
    """Generation: batch arithmetic, sampling, engines."""

    engine: Annotated[str, one_of(ENGINES)] = "sglang"
    """`sglang` on GPUs; `torch`: the embedded engine, for CPU and as the reference."""
    num_rollout: PositiveInt = 3000
    """Rollouts (generate, train, sync) of the whole job. `mode: Generate` ends earlier, with the last prompt."""
    batch_size: PositiveInt = 16
    """Prompts per rollout."""
    n_samples_per_prompt: PositiveInt = 8
    """Samples per prompt: the group of GRPO."""
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    """How tokens are drawn."""
    generate: GenerateSpec = Field(default_factory=GenerateSpec)
    """How one sample is produced."""
    return_logprobs: bool = True
    """Keep the engine's log-probability of every token, aligned one to one. TIS needs them."""
    max_context_length: PositiveInt | None = None
    """Longest sequence in tokens, prompt included; by default prompt limit plus response limit."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Engines, each in a pod (or, with more GPUs than a node has, in several). The scale subresource."""
    autoscaling: Autoscaling | None = None
    """Let the operator choose the number of engines; `replicas` is then the number to begin with."""
    gpus_per_engine: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one engine (its tensor parallelism); 0 on CPU."""
    engine_args: FreeMap = Field(default_factory=dict)
    """Arguments passed to the engine as they are. SGLang: its ServerArgs. torch: `slots`, `prefillChunk`."""
    weight_sync: Literal["auto", "disk"] = "auto"
    """How SGLang gets new weights. `auto`: GPU memory when colocated, else NCCL. `disk`: files in the job's storage."""
    over_sampling_batch_size: PositiveInt | None = None
    """Prompts held at once, of which `batchSize` make up a rollout; the rest wait for the next. By default equal."""
    dynamic_filter: ImportPath | Literal["nonzero_std"] | None = None
    """Keeps or drops a group, then replaced by another prompt's. `nonzero_std`: DAPO's, groups whose rewards differ;
    or `def f(samples) -> bool`."""
    max_prompts_per_rollout: PositiveInt | None = None
    """Prompts drawn for one rollout at most when a filter drops groups; by default 16 × `overSamplingBatchSize`."""
    partial_rollout: bool = False
    """Once the batch is full, keep unfinished samples with their tokens and go on with them in the next rollout."""
    partial_rollout_tokens: PositiveInt | None = None
    """With `partialRollout`: tokens a sample is given between two looks at whether the batch is full; by default a
    quarter of `maxResponseLength`."""
    timeout_seconds: PositiveInt = 3600
    """A rollout that takes longer fails the attempt, naming the samples that wait."""
    max_engine_restarts: NonNegativeInt = 3
    """Engines replaced in one attempt before it fails."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Pods of the rollout group."""
