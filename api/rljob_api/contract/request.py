"""What the operator asks of the driver: `request.json` in the ConfigMap `<job>-control`.

Either may be of another version: what a request has besides these fields is ignored. The operator waits for no request
without a limit, and takes none for done before the driver reports it.
"""

import json
from dataclasses import dataclass
from typing import TypedDict, cast

REQUEST_KEY = "request.json"


class Request(TypedDict, total=False):
    """The request as it is written."""

    attempt: int
    """The attempt that is asked; the others ignore it."""
    suspend: bool
    """Commit and end."""
    requestedAt: str | None
    """When the suspend was first asked for (RFC 3339); None: it is not."""
    engines: int | None
    """Engines that are to serve; None: as many as there are."""
    drain: list[str]
    """Pods that are to go: their engines get no new samples, finish what they have and end."""
    drainSince: str | None
    """When these were first to be drained (RFC 3339)."""
    generation: int
    """Generation of the spec that asks."""


def request_to_json(request: Request) -> str:
    """The request as text."""
    return json.dumps(request, sort_keys=True)


def request_from_json(text: str | None) -> Request:
    """The request that a text holds; its values may be of any type. Raises ValueError when it is no JSON object."""
    request = json.loads(text or "{}")
    if not isinstance(request, dict):
        raise ValueError(f"{REQUEST_KEY} is not an object: {str(text)[:80]}")
    return cast(Request, request)


def wants_suspend(text: str | None, attempt: int) -> bool:
    """Whether a request asks this attempt to suspend. Raises ValueError when it is not a JSON object."""
    request = request_from_json(text)
    return bool(request.get("suspend")) and request.get("attempt", attempt) == attempt


@dataclass(frozen=True)
class ScaleRequest:
    """What the operator wants of the rollout group."""

    engines: int
    """Engines that are to serve."""
    drain: frozenset[str] = frozenset()
    """Pods that are to go."""


def wants_scale(text: str | None, attempt: int) -> ScaleRequest | None:
    """What a request asks of this attempt's engines; None: nothing. Raises ValueError when it is not readable."""
    request = request_from_json(text)
    engines = request.get("engines")
    if engines is None or request.get("attempt", attempt) != attempt:
        return None
    if not isinstance(engines, int) or engines < 1:
        raise ValueError(f"{REQUEST_KEY} asks for {engines!r} engines")
    return ScaleRequest(engines, frozenset(map(str, request.get("drain") or ())))
