"""`podTemplatePatch`: a strategic merge on a rendered pod template.

As Kubernetes' own: maps merge key by key; null removes a key; lists of objects that have a merge key (containers by
name, env by name, volumeMounts by mountPath, …) merge element by element, new elements go to the end; every other
list is replaced. `$patch: delete` in an element removes the one with its key; `$patch: replace` in a map (or as an
element of its own in a list) puts the patch in place of what was there.
https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md

The work is linear in the size of target and patch, whatever the patch: it is done on the event loop, and users write
patches. So the target is copied once, elements are found by an index, and a path is put into words only for an error.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from rljob_api.errors import UserError

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Merge keys of the lists of a pod template; a list that is not named here is replaced as a whole."""
DIRECTIVE = "$patch"


_GONE = object()
"""Stands where a deleted element was."""
_SHOWN = 64
"""Characters shown of a key or a value in an error."""
type _Where = tuple[_Where | None, str]
"""A place: that around it, and the step from there."""


def merge(target: Mapping[str, Any], patch: Mapping[str, Any], path: str = "podTemplatePatch") -> dict[str, Any]:
    """`target` with `patch` merged into it; neither is changed. Raises UserError for a patch that cannot be merged."""
    return _merge(_copy(target), patch, (None, path))


def _merge(own: dict[str, Any], patch: Mapping[str, Any], where: _Where) -> dict[str, Any]:
    """As `merge`, into a map that nobody else holds."""
    directive = patch.get(DIRECTIVE)
    if directive == "replace":
        plain: dict[str, Any] = _plain(patch)
        return plain
    if directive is not None:
        given = repr(_short(str(directive)))
        raise _error(where, f".{DIRECTIVE}: {given} is not possible in a map; use replace, or null for a key")
    for key, value in patch.items():
        if value is None:
            own.pop(key, None)
        elif isinstance(value, Mapping):
            existing = own.get(key)
            own[key] = _merge(existing if isinstance(existing, dict) else {}, value, (where, f".{key}"))
        elif isinstance(value, list) and key in MERGE_KEYS:
            existing = own.get(key)
            elements = existing if isinstance(existing, list) else []
            own[key] = _merge_list(elements, value, MERGE_KEYS[key], (where, f".{key}"))
        else:
            own[key] = _copy(value)
    return own


def _merge_list(own: list[Any], patch: list[Any], key: str, where: _Where) -> list[Any]:
    """As `_merge`, of lists; of several elements with one key, the first counts."""
    if any(element == {DIRECTIVE: "replace"} for element in patch):
        return [_plain(element) for element in patch if element != {DIRECTIVE: "replace"}]
    places: dict[Any, deque[int]] = {}
    for place, element in enumerate(own):
        if isinstance(element, Mapping) and _is_scalar(element.get(key)):
            places.setdefault(element.get(key), deque()).append(place)
    for index, element in enumerate(patch):
        if not isinstance(element, Mapping) or key not in element:
            raise _error((where, f"[{index}]"), f": must be an object with {key}, by which it is merged")
        if not _is_scalar(wanted := element[key]):
            raise _error((where, f"[{index}]"), f".{key}: must be a string or a number: elements are merged by it")
        found = places.setdefault(wanted, deque())
        if element.get(DIRECTIVE) == "delete":
            if found:
                own[found.popleft()] = _GONE
        elif found:
            own[found[0]] = _merge(own[found[0]], element, (where, f"[{index}]"))
        else:
            found.append(len(own))
            own.append(_merge({}, element, (where, f"[{index}]")))
    return [element for element in own if element is not _GONE]


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Mapping | list)


def _error(where: _Where, message: str) -> UserError:
    steps: list[str] = []
    place: _Where | None = where
    while place:
        place, step = place
        steps.append(_short(step))
    return UserError("".join(reversed(steps)) + message)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _copy(value: Any) -> Any:
    """A copy that is shared nowhere, not even where the value shares parts within itself, as copy.deepcopy would."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A copy without directives and nulls."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != DIRECTIVE and item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value
