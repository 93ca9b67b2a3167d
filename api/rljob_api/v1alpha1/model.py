"""`spec.model`: where weights, tokenizer and architecture come from."""

from typing import Literal

from pydantic import Field

from rljob_api.v1alpha1.base import (
    ApiModel,
    DnsName,
    FreeMap,
    LongStr,
    PathStr,
    PositiveFloat,
    PositiveInt,
    SecretKeyRef,
    ShortStr,
)


class RandomInit(ApiModel):
    """A freshly initialised transformer, for experiments from nothing. The vocabulary comes from the tokenizer."""

    architecture: Literal["qwen2"] = "qwen2"
    """Architecture, as transformers names its model types."""
    hidden_size: PositiveInt = 96
    """Width of the residual stream."""
    intermediate_size: PositiveInt = 256
    """Width of the gated MLP."""
    num_hidden_layers: PositiveInt = 3
    """Number of transformer blocks."""
    num_attention_heads: PositiveInt = 4
    """Number of query heads; divides the hidden size."""
    num_key_value_heads: PositiveInt = 4
    """Number of key/value heads (grouped-query attention); divides the number of query heads."""
    max_position_embeddings: PositiveInt = 512
    """Longest sequence in tokens."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary position embedding."""
    initializer_range: PositiveFloat = 0.05
    """Standard deviation of the initial weights."""
    tie_word_embeddings: bool = False
    """Share the input embedding with the output projection."""


class ModelSource(ApiModel):
    """Where `model.path` is resolved."""

    type: Literal["auto", "hub", "path", "persistentVolumeClaim", "objectStore"] = "auto"
    """`auto`: a folder when one is there, else the Hub. `path`: a folder in the pod or on this machine."""
    claim_name: DnsName | None = None
    """For `persistentVolumeClaim`: the claim that holds the folder `model.path` (relative to the claim; read only)."""
    uri: ShortStr | None = None
    """For `objectStore`: where the folder lies, such as `s3://bucket/prefix`."""
    token: SecretKeyRef | None = None
    """Hub token (read as HF_TOKEN)."""


class ModelSpec(ApiModel):
    """The policy model: weights, tokenizer, precision."""

    path: PathStr | None = None
    """Hub id or folder of a Hugging Face checkpoint (config, weights, tokenizer). Required without `randomInit`."""
    revision: ShortStr | None = None
    """Branch, tag or commit on the Hub; pin a commit for a run that can be repeated."""
    source: ModelSource = Field(default_factory=ModelSource)
    """Where `path` is resolved."""
    tokenizer_path: PathStr | None = None
    """Tokenizer instead of the one in `path`. Required with `randomInit`."""
    random_init: RandomInit | None = None
    """Start from random weights of this shape instead of `path`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the weights in compute. float32 on CPU."""
    attention_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention kernel of transformers models."""
    chat_template: LongStr | None = None
    """Jinja chat template instead of the tokenizer's own, or a file with one (`….jinja`); must keep `<think>` text
    when the reward reads it."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings. Off: such a checkpoint is refused."""
    cache_dir: PathStr | None = None
    """Folder for downloads; by default one in the job's storage, shared by attempts."""
    offline: bool = False
    """Never reach for the Hub: what is not in the cache is an error at once."""
    overrides: FreeMap = Field(default_factory=dict)
    """Fields of the Hugging Face config to override."""
