"""Requests to SGLang and its answers, as pure functions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.types import FinishReason, SamplingParams, Tokenizer

MAX_SEED = 2**31 - 1
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(frozen=True, slots=True)
class Part:
    """What one request generated; a turn that is interrupted by new weights takes several."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    stop: str | None = None


def sampling_request(
    sampling: SamplingParams, max_new_tokens: int, seed: int | None, end_ids: Collection[int] = ()
) -> dict[str, Any]:
    """SGLang's sampling parameters. `end_ids` are the model's own end-of-sequence tokens; `seed` (deterministic
    inference alone) fixes a sample's draws by position."""
    request: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": max_new_tokens,
        "ignore_eos": sampling.ignore_eos,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.stop:
        request["stop"] = list(sampling.stop)
    if ends := {*end_ids, *sampling.stop_ids}:
        request["stop_token_ids"] = sorted(ends)  # those of a generation_config are not in the folder it starts from
    if seed is not None:
        request["sampling_seed"] = seed % MAX_SEED
    return request


def read_answer(answer: Mapping[str, Any]) -> Part:
    """Tokens and log-probs of an answer with `return_logprob`. Raises ValueError when they do not fit together.

    A log-probability is that of the drawn token under the sampling temperature, as `Generation` has it.
    """
    meta = answer["meta_info"]
    drawn = meta.get("output_token_logprobs") or []
    ids = [token for _, token, _ in drawn]
    count = int(meta.get("completion_tokens", len(ids)))
    reason = meta.get("finish_reason") or {}
    kind = reason.get("type", "abort") if isinstance(reason, Mapping) else str(reason)
    if len(ids) != count and kind != "abort":  # an interrupted request may have drawn one that it did not report
        raise ValueError(f"the engine generated {count} tokens and gave {len(ids)} log-probabilities")
    if kind not in _REASONS:
        raise ValueError(f"finish reason {kind!r} is unknown")
    matched = reason.get("matched") if isinstance(reason, Mapping) else None
    return Part(ids, [value for value, _, _ in drawn], _REASONS[kind], matched if isinstance(matched, str) else None)


def join(parts: Sequence[Part], stop: Sequence[str], tokenizer: Tokenizer) -> Part:
    """The parts of one turn as one. A stop string that lies across a join ends the turn where it is complete."""
    if len(parts) == 1:
        return parts[0]
    ids = [token for part in parts for token in part.token_ids]
    logprobs = [value for part in parts for value in part.logprobs]
    last = parts[-1]
    if stop:
        end = stop_end(ids, stop, tokenizer)
        if end is not None:
            return Part(ids[: end[0]], logprobs[: end[0]], "stop", end[1])
    return Part(ids, logprobs, last.finish_reason, last.stop)


def stop_end(ids: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Number of tokens after which the decoded text first holds a stop string, and which one."""
    if not any(text in tokenizer.decode(ids, skip_special_tokens=False) for text in stop):
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        text = tokenizer.decode(ids[:middle], skip_special_tokens=False)
        low, high = (low, middle) if any(end in text for end in stop) else (middle + 1, high)
    text = tokenizer.decode(ids[:low], skip_special_tokens=False)
    return low, next(end for end in stop if end in text)


def settled(turn: Part, sampling: SamplingParams, end_ids: Collection[int], tokenizer: Tokenizer) -> Part:
    """The turn as `Generation` tells how it ended. SGLang looks at the limit first: a turn whose last allowed token
    ends it is `length` to it, whether by that token or by a stop string that the token completes."""
    ids = turn.token_ids
    if turn.finish_reason != "length" or not ids:
        return turn
    if not sampling.ignore_eos and (ids[-1] in end_ids or ids[-1] in sampling.stop_ids):
        return Part(ids, turn.logprobs, "stop")
    longest = max(map(len, sampling.stop), default=0)
    if longest:
        # An earlier one would have ended it, so it lies at the end. A character takes four tokens at most.
        text = tokenizer.decode(ids[-4 * (longest + 1) :], skip_special_tokens=False)
        places = [(text.find(stop), stop) for stop in sampling.stop if stop and stop in text]
        if places:
            return Part(ids, turn.logprobs, "stop", min(places)[1])
    return turn
