"""Whether a child needs to be applied: nothing is written that is there already.

Two signs together: the digest of what was applied last (a field is no longer wanted, or wanted anew) and a comparison
of every wanted field with the live object (somebody changed one). Fields that others added are left alone.
"""

import hashlib
import json
from typing import Any

from rljob_api.contract.labels import APPLIED

from rljob_operator.kube.objects import Obj, meta, same
from rljob_operator.kube.trimming import trim


def stamped(desired: Obj, its_digest: str) -> Obj:
    """The object with the digest of itself among its annotations."""
    metadata = desired["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED: its_digest}
    return desired | {"metadata": metadata | {"annotations": annotations}}


def digest(desired: Obj) -> str:
    """Digest of an object."""
    return hashlib.sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:16]


def needs_apply(desired: Obj, its_digest: str, live: Obj | None) -> bool:
    """Whether the live object differs from what is wanted."""
    if live is None or meta(live, "annotations", APPLIED) != its_digest:
        return True
    return not covers(trim(live), trim(desired))


def covers(live: Any, desired: Any) -> bool:
    """Whether everything in `desired` is in `live`. Objects in lists are found by name where all have one."""
    if live == desired:  # as most are, and quickly told
        return True
    if isinstance(desired, dict):
        # Empty maps and lists are dropped on the server's side.
        return isinstance(live, dict) and all(
            covers(live[key], value) if key in live else value in ({}, [], None) for key, value in desired.items()
        )
    if isinstance(desired, list):
        if not isinstance(live, list):
            return False
        if desired and all(isinstance(element, dict) and "name" in element for element in desired):
            by_name = {element.get("name"): element for element in live if isinstance(element, dict)}
            return all(element["name"] in by_name and covers(by_name[element["name"]], element) for element in desired)
        return len(live) == len(desired) and all(covers(a, b) for a, b in zip(live, desired, strict=True))
    return same(live, desired)
