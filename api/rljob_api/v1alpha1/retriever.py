"""`spec.retriever`: the dense retrieval service that answers searches."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, NonNegativeInt, PathStr, PositiveFloat, PositiveInt, ShortStr
from rljob_api.v1alpha1.checkpoint import ClaimSpec
from rljob_api.v1alpha1.pods import PodOverrides

RETRIEVER_DIR = "/rljob-retriever"
"""Where the claim of `retriever.storage` is mounted."""


class EncoderSpec(ApiModel):
    """What turns text into vectors."""

    type: Literal["e5", "hashed"] = "e5"
    """`e5`: a transformers encoder, mean pooling, normalised (Wang et al. 2022). `hashed`: words hashed into a
    vector, deterministic, no weights: for tests and the quickstart."""
    path: PathStr = "intfloat/e5-base-v2"
    """Hub id or folder of the encoder."""
    revision: ShortStr | None = None
    """Branch, tag or commit on the Hub."""
    dimension: PositiveInt = 768
    """Vector size of `hashed`."""
    max_length: PositiveInt = 256
    """Tokens of a text that are read."""
    query_prefix: ShortStr = "query: "
    """Put before each query."""
    passage_prefix: ShortStr = "passage: "
    """Put before each passage when an index is built."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""


class IndexSpec(ApiModel):
    """The faiss index."""

    path: PathStr
    """Index file; memory-mapped on CPU."""
    type: Literal["Flat"] = "Flat"
    """faiss factory string: exact inner product."""
    build: Literal["IfMissing", "Never"] = "IfMissing"
    """Build the index from the corpus when the file is missing, before the service starts."""
    gpu: bool = False
    """Hold the index on GPUs, sharded over those of the pod."""


class RetrieverStorage(ClaimSpec):
    """A claim of the retriever's own, mounted at /rljob-retriever where the index is made and served."""


class RetrieverAutoscaling(ApiModel):
    """A HorizontalPodAutoscaler over the Deployment; it needs a metrics server in the cluster."""

    min_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Fewest pods while the job runs."""
    max_replicas: Annotated[int, Field(ge=1, le=64)]
    """Most pods."""
    target_cpu_utilization_percentage: Annotated[int, Field(ge=1, le=1000)] = 70
    """Mean CPU use that is aimed at, in percent of `retriever.pod.resources.requests.cpu`."""


class RetrieverSpec(ApiModel):
    """The retriever Deployment and Service (a process on a laptop)."""

    corpus: PathStr
    """Passages as JSONL ({id, contents}); the first line of `contents` is the title, as in Search-R1's wiki-18."""
    index: IndexSpec
    """The faiss index over the corpus."""
    encoder: EncoderSpec = Field(default_factory=EncoderSpec)
    """What turns text into vectors."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    """Port of the service. Locally a free port is taken when this one is busy."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of the Deployment."""
    autoscaling: RetrieverAutoscaling | None = None
    """Choose the number of pods by their load, in place of `replicas`."""
    storage: RetrieverStorage | None = None
    """A claim for corpus and index, apart from the job's. Give their paths below /rljob-retriever."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of one pod."""
    topk: PositiveInt = 3
    """Documents per query when the request names no number."""
    max_batch_size: PositiveInt = 512
    """Queries encoded and searched at once."""
    batch_window_milliseconds: NonNegativeInt = 2
    """How long a request waits for others to share its batch."""
    max_queued_queries: PositiveInt = 4096
    """Beyond it requests are answered 503 with Retry-After."""
    startup_timeout_seconds: PositiveFloat = 900.0
    """Not ready within this time: the job's RetrieverReady condition says so and the attempt does not start."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Pods of the retriever."""
