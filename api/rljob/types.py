"""What travels between data, engines, rewards and the trainer: samples as token ids, never re-tokenised text."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "abort"]
SampleStatus = Literal["pending", "completed", "truncated", "aborted", "failed"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next tokens are drawn. `temperature` 0 is greedy; `top_k` −1 is all."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end the generation, looked for in the decoded new text; kept in the output."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the generation as the model's end-of-sequence tokens do."""
    ignore_eos: bool = False
    """No token ends the generation, neither the model's own nor `stop_ids`."""
    budget: int | None = None
    """Tokens that a sample is given in this rollout at most, over all turns; beyond them it is cut off, status
    `aborted`, to be continued (`rollout.resume`). Engines do not look at it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One turn as the engine produced it: `token_ids`, `logprobs` and `policy_versions` are aligned one to one.

    A log-probability is that of the drawn token under the sampling temperature (log softmax(logits / T), T=1 for
    greedy), before top-p/top-k.

    How it ended, on every engine:

    | ended by | `finish_reason` | `stop` | last of `token_ids` | `text` |
    | --- | --- | --- | --- | --- |
    | an end-of-sequence token or one of `stop_ids` | `stop` | None | that token (`end_id`) | without that token |
    | a stop string | `stop` | the string | the token that completes it | with the string and the token's rest |
    | the limit or the end of the context | `length` | None | as drawn | of all tokens |
    | an abort | `abort` | None | as drawn | of all tokens |

    The first row that holds counts: a turn whose last allowed token ends it has `stop`, not `length`. So whether a turn
    is closed is said by its ids, never by its text.
    """

    token_ids: list[int]
    logprobs: list[float]
    policy_versions: list[int]
    finish_reason: FinishReason
    stop: str | None = None
    """The stop string that ended it, if one did."""
    text: str = ""
    """The decoded tokens without `end_id`; other special tokens are shown."""

    @property
    def end_id(self) -> int | None:
        """The token that ended it, the last of `token_ids`; None when something else did."""
        return end_id(self.token_ids, self.finish_reason, self.stop)


def end_id(token_ids: Sequence[int], finish_reason: FinishReason, stop: str | None) -> int | None:
    """The token that ended a generation, None when something else did; see `Generation`."""
    return token_ids[-1] if token_ids and finish_reason == "stop" and stop is None else None


def shown_ids(token_ids: list[int], finish_reason: FinishReason, stop: str | None) -> list[int]:
    """The ids whose text is shown: without the one that ended the generation."""
    return token_ids if end_id(token_ids, finish_reason, stop) is None else token_ids[:-1]


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One call of `Session.generate` and what it gave; with finish reason `abort`, what it had given so far."""

    new_token_ids: list[int]
    generation: Generation


class Session(Protocol):
    """One sequence on an engine. Its KV cache is kept between turns."""

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        """Append `new_token_ids` (prompt or observation), then generate. Raises EngineError when the engine is lost.

        `begun` is what an earlier call with the same ids gave before it was aborted: the generation goes on after its
        tokens, and the result holds them, with their log-probabilities and versions. `sampling.max_new_tokens` counts
        them too, and a stop string may begin within them. Engines without partial rollouts are never given it.
        """
        ...

    async def abort(self) -> None:
        """End the generation that is under way, if one is: it returns what it has, with finish reason `abort`."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


class Engine(Protocol):
    """What a generate function sees of an inference engine."""

    tokenizer: Tokenizer
    max_context_length: int

    def open(self, seed: int) -> AbstractAsyncContextManager[Session]:
        """A session whose draws depend on `seed` and the token's position alone, not on what else runs."""
        ...


class EngineError(RuntimeError):
    """An engine died, hangs, or serves another version than it should."""


@dataclass(slots=True)
class Sample:
    """One prompt and its response. `response_ids`, `loss_mask`, `logprobs` and `policy_versions` have one length."""

    prompt: str
    prompt_ids: list[int]
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    """Origin of the row, for scores by source."""
    row: int = 0
    """Row in its data set."""
    group: int = 0
    """Number of the prompt within the rollout."""
    index: int = 0
    """Number of the sample within its group."""
    seed: int = 0
    """Seed of the sample's draws; from the job's seed, the rollout, the group and the index."""
    response_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    """1: generated, trained on. 0: observation."""
    logprobs: list[float] = field(default_factory=list)
    """The engine's log-probabilities; 0.0 for observations."""
    policy_versions: list[int] = field(default_factory=list)
    """Version of the weights that made each token; −1 for observations."""
    response: str = ""
    """The response as text, for rewards and people; never tokenised again. Tokens that end a generation are no part of
    it, unless what follows shows them (the end of a turn between two messages of a chat)."""
    status: SampleStatus = "pending"
    reward: float | None = None
    reward_parts: dict[str, float] = field(default_factory=dict)
    info: dict[str, float | str] = field(default_factory=dict)
    """Counters of the generate function (turns, searches, invalid_actions, search_failures …)."""
    transcript: list[list[TurnRecord]] = field(default_factory=list)
    """Of an aborted sample, the turns so far of each session that its generate function opened: it is continued from
    them, see `rollout.resume`. Empty otherwise; the response is then the whole truth."""

    def append_generation(self, generation: Generation) -> None:
        """Append generated tokens, loss mask 1."""
        self.response_ids += generation.token_ids
        self.loss_mask += [1] * len(generation.token_ids)
        self.logprobs += generation.logprobs
        self.policy_versions += generation.policy_versions
        self.response += generation.text

    def append_observation(self, token_ids: Sequence[int], text: str) -> None:
        """Append what a tool answered, loss mask 0."""
        self.response_ids += token_ids
        self.loss_mask += [0] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)
        self.policy_versions += [-1] * len(token_ids)
        self.response += text


@dataclass(frozen=True, slots=True)
class TrainSample:
    """What the trainer needs of a sample: ids (prompt then response) and per-response-token arrays."""

    prompt_ids: list[int]
    response_ids: list[int]
    loss_mask: list[int]
    rollout_logprobs: list[float]
    advantage: float
    """Of every trained token, where `advantages` is None."""
    policy_versions: list[int] = field(default_factory=list)
    """Version of the weights that made each response token, −1 for observations; empty when nobody asks. Tokens of a
    partial rollout may be older than the policy that is trained; `rollout_logprobs` are those of their own version."""
    group: int = 0
    """The prompt: samples of one have the same number, from 0."""
    advantages: list[float] | None = None
    """One per trained token, where they differ within the sample."""
    values: list[float] | None = None
    """The critic's value at each trained token before the rollout's first step (`gae`)."""
    returns: list[float] | None = None
    """What the critic should have said at each trained token (`gae`)."""


@dataclass(frozen=True, slots=True)
class TokenSignals:
    """What the ranks say of a sample's trained tokens before advantages are known."""

    kl: list[float] | None = None
    """Estimates of KL(π ‖ π_ref), for a penalty in the reward."""
    values: list[float] | None = None
    """The critic's values, for `gae`."""
