"""`spec.evaluation`: held-out data sets scored during and after training."""

from typing import Annotated

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, DnsLabel, NonNegativeInt, PositiveInt
from rljob_api.v1alpha1.data import PromptDataset
from rljob_api.v1alpha1.rollout import SamplingSpec


class EvalSamplingSpec(SamplingSpec):
    """How tokens are drawn in evaluation: greedy unless a temperature is given."""

    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Softmax temperature; 0 is greedy."""


class EvalDataset(PromptDataset):
    """One named evaluation set."""

    name: DnsLabel
    """Name in metrics and reports."""
    n_samples_per_prompt: PositiveInt = 1
    """Samples per prompt; scores are their mean (and pass@k)."""
    sampling: EvalSamplingSpec | None = None
    """How tokens are drawn; by default as in `evaluation.sampling`."""


class EvaluationSpec(ApiModel):
    """Evaluation sets and when they are scored."""

    datasets: Annotated[list[EvalDataset], Field(max_length=16)] = Field(default_factory=list)
    """Evaluation sets; none: no evaluation."""
    interval: NonNegativeInt = 5
    """Every so many rollouts; 0: only at the start and at the end."""
    at_start: bool = False
    """Score before the first rollout (after SFT)."""
    at_end: bool = True
    """Score after the last rollout."""
    sampling: EvalSamplingSpec = Field(default_factory=EvalSamplingSpec)
    """How tokens are drawn; greedy by default."""
    without_retriever: bool = False
    """At the end, score once more with a retriever that answers unrelated documents: what the model knows by itself."""
