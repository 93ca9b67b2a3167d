"""Requests of one user, counted from the apiserver's audit log."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import orjson

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass
class Requests:
    """What a user asked for."""

    total: int = 0
    writes: int = 0
    """All that may change something, Events apart, refused or not."""
    events: int = 0
    made: int = 0
    """Objects that the requests made, Events apart."""
    by_kind: Counter[str] = field(default_factory=Counter)
    """`verb resource/subresource`."""


def position(log: Path) -> int:
    """Where the log ends now."""
    return log.stat().st_size if log.exists() else 0


def requests(log: Path, user: str, begin: int, end: int | None = None, namespace: str | None = None) -> Requests:
    """Requests between two positions of the log; of one namespace, if given."""
    result = Requests()
    with log.open("rb") as file:
        file.seek(begin)
        for line in file:
            if end is not None and file.tell() > end:
                break
            entry = orjson.loads(line)
            target = entry.get("objectRef") or {}
            if entry["user"]["username"] != user or (namespace and target.get("namespace") != namespace):
                continue
            result.total += 1
            what = "/".join(filter(None, (target.get("resource"), target.get("subresource"))))
            result.by_kind[f"{entry['verb']} {what}"] += 1
            if entry["verb"] in WRITES:
                if target.get("resource") == "events":
                    result.events += 1
                else:
                    result.writes += 1
                    result.made += (entry.get("responseStatus") or {}).get("code") == 201
    return result
