"""What every engine keeps, ours and those that play one in a test: see `rljob.types.Generation`."""

from collections.abc import Collection
from typing import Any

from rljob.types import Generation, SamplingParams


def check_generation(
    generation: Generation, sampling: SamplingParams, tokenizer: Any, eos_ids: Collection[int]
) -> None:
    """Raises AssertionError where `generation` breaks the contract. `eos_ids` are the engine's own."""
    ids = generation.token_ids
    assert len(ids) == len(generation.logprobs) == len(generation.policy_versions) <= sampling.max_new_tokens
    ends = frozenset() if sampling.ignore_eos else frozenset((*eos_ids, *sampling.stop_ids))
    assert not ends.intersection(ids[:-1]), "it goes on after a token that ends it"
    ended = bool(ids) and ids[-1] in ends
    shown = ids[:-1] if ended else ids
    if tokenizer is not None:
        assert generation.text == tokenizer.decode(shown, skip_special_tokens=False), "text is that of all but the end"
        before = tokenizer.decode(ids[:-1], skip_special_tokens=False)
        assert not any(stop and stop in before for stop in sampling.stop), "it goes on after a stop string"
    found = [stop for stop in sampling.stop if stop and stop in generation.text]
    assert (generation.finish_reason == "stop") == bool(ended or found)
    assert generation.end_id == (ids[-1] if ended else None)
    if ended:
        assert generation.stop is None
    else:
        assert generation.stop in (found or [None])


def end_of(
    ids: list[int], sampling: SamplingParams, room: int, tokenizer: Any, eos_ids: Collection[int]
) -> tuple[list[int], str, str | None]:
    """What an engine gives of the `ids` that its model would draw: ids, finish reason and stop string. The plainest
    reading of the contract: the text is looked at anew after every token. Raises AssertionError when nothing ends
    them: a model goes on for ever."""
    ends = frozenset() if sampling.ignore_eos else frozenset((*eos_ids, *sampling.stop_ids))
    limit = min(sampling.max_new_tokens, room)
    tail = 4 * max(map(len, sampling.stop), default=0) + 8  # a character takes four tokens at most
    for count in range(1, min(limit, len(ids)) + 1):
        if ids[count - 1] in ends:
            return ids[:count], "stop", None
        if not sampling.stop:
            continue
        text = tokenizer.decode(ids[max(0, count - tail) : count], skip_special_tokens=False)
        if places := [(text.find(stop), stop) for stop in sampling.stop if stop and stop in text]:
            return ids[:count], "stop", min(places)[1]
    assert limit <= len(ids), "nothing ends what the model draws"
    return ids[:limit], "length", None
