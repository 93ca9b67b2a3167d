"""What a training backend supplies. `training.rank` drives it, `training.registry` finds it by its name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from torch import Tensor

from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.training.microbatch import MicroBatch, Row
from rljob_trainer.training.rl_loss import RlLoss
from rljob_trainer.weights.buckets import TensorInfo

Stage = Literal["sft", "rl"]
EntropyMode = Literal["none", "value", "gradient"]


class StepLoss(Protocol):
    """The loss of one optimizer step on one rank, micro batch by micro batch."""

    def __call__(self, batch: MicroBatch, logprobs: Tensor, ref: Tensor | None, entropy: Tensor | None) -> Tensor:
        """The micro batch's share of the loss, a scalar; the shares of all micro batches and ranks add up to it.

        logprobs: [N] of the policy's trained tokens, with gradient. ref: [N] of the reference. entropy: [N].
        """
        ...

    def metrics(self) -> dict[str, float]:
        """`loss` and whatever else was measured, over all ranks (collective)."""
        ...


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """Which step of which optimizer."""

    name: str
    """As errors call it."""
    number: int
    """From 0 within its stage."""
    total: int
    """Steps of the stage, for the learning rate's schedule."""
    spec: OptimizerSpec


class Backend(ABC):
    """The part of a rank that knows its model, how that is spread over ranks, and its optimizer.

    Constructed with the job, the job's directory, the rank and the number of ranks; raises UserError for a job that it
    cannot train. All ranks call the same methods in the same order; every one may be collective. Rows are this rank's
    share of a batch: those of a rank may be fewer than another's, or none.
    """

    stage: Stage
    """That of the loaded state; all begin with `sft`."""
    device: torch.device
    uses_process_group: bool
    """Whether this rank has to join the others before `setup`."""

    @abstractmethod
    def setup(self) -> None:
        """Prepare this process, once it has joined the others."""

    @abstractmethod
    def load(self, commit_dir: str | None, tokenizer: Any) -> None:
        """Take over weights, optimizer, reference and generators from a commit, or start from `spec.model`."""

    @abstractmethod
    def begin_rl(self) -> None:
        """From stage `sft` to `rl`: freeze the reference (the weights now, or `checkpoint.refLoad`), and start a new
        optimizer."""

    @abstractmethod
    def forward_backward(
        self, rows: Sequence[Row], loss: StepLoss, *, temperature: float, entropy: EntropyMode
    ) -> dict[str, float]:
        """Gradients of `loss` over the rows, the gradients before dropped. Returns the loss's metrics, on every rank.

        Log-probabilities and entropies are those of softmax(logits / temperature); a frozen reference's come with them.
        """

    @abstractmethod
    def apply(self, step: OptimizerStep, loss: float) -> tuple[float, float]:
        """Clip the gradients and step. Returns their norm before clipping and the learning rate. Raises NonFiniteError,
        weights untouched, when `loss` or the norm is not finite."""

    @abstractmethod
    def logprobs(self, rows: Sequence[Row], *, temperature: float) -> list[list[float]]:
        """Log-probabilities of every row's trained tokens under the weights as they are."""

    @abstractmethod
    def token_signals(self, rows: Sequence[Row], *, temperature: float) -> list[TokenSignals]:
        """What advantages are made of beside rewards, for every row's trained tokens: the critic's values (`gae`) and
        the KL against the reference (`kl.rewardCoef`)."""

    def critic_step(
        self, loss: RlLoss, samples: Sequence[TrainSample], rows: Sequence[Row], step: OptimizerStep
    ) -> Callable[[], dict[str, float]]:
        """Gradients of the critic, found to be finite. The result applies them and returns the critic's metrics: after
        the policy's turn, so that a step is applied to both or to neither. Without a critic, nothing."""
        return dict

    @abstractmethod
    def weights_layout(self) -> list[TensorInfo]:
        """Hugging Face name, whole shape and dtype of every weight (tied ones once); the same list on all ranks."""

    @abstractmethod
    def gather_weights(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named weights (None: all), whole, in `model.dtype`, on this rank's device, in the order of
        `weights_layout`. Collective: all ranks ask for the same."""

    @abstractmethod
    def hf_config(self) -> tuple[Any, str]:
        """The model's transformers config, and the name of its class of causal language models."""

    @abstractmethod
    def held(self) -> Iterator[Tensor]:
        """What lies on the device from one call to the next: weights, reference, optimizer states. Gradients may be
        dropped."""

    @abstractmethod
    def state_writer(self, directory: str, *, copy: bool) -> Callable[[], list[FileEntry]]:
        """A function that writes this rank's state into a commit's (temporary) folder, durably, and returns the
        entries for the manifest. With `copy` the state is copied to host memory now, and the function may run in any
        thread while training goes on; without, it has to run at once."""

    @abstractmethod
    def close(self) -> None:
        """Drop the state and leave whatever groups the backend has formed."""
