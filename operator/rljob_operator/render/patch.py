"""`podTemplatePatch`: a strategic merge on a rendered pod template.

As Kubernetes' own: maps merge key by key; null removes a key; lists of objects that have a merge key (containers by
name, env by name, volumeMounts by mountPath, …) merge element by element, new elements go to the end; every other
list is replaced. `$patch: delete` in an element removes the one with its key; `$patch: replace` in a map (or as an
element of its own in a list) puts the patch in place of what was there.
https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
"""

import copy
from collections.abc import Mapping
from typing import Any

from rljob_trainer.config.errors import UserError

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


def merge(target: Mapping[str, Any], patch: Mapping[str, Any], path: str = "podTemplatePatch") -> dict[str, Any]:
    """`target` with `patch` merged into it; neither is changed. Raises UserError for a patch that cannot be merged."""
    directive = patch.get(DIRECTIVE)
    body = {key: value for key, value in patch.items() if key != DIRECTIVE}
    if directive == "replace":
        plain: dict[str, Any] = _plain(body)
        return plain
    if directive is not None:
        raise UserError(f"{path}.{DIRECTIVE}: {directive!r} is not possible in a map; use replace, or null for a key")
    result = copy.deepcopy(dict(target))
    for key, value in body.items():
        here = f"{path}.{key}"
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            existing = result.get(key)
            result[key] = merge(existing if isinstance(existing, Mapping) else {}, value, here)
        elif isinstance(value, list) and key in MERGE_KEYS:
            result[key] = _merge_list(result.get(key) or [], value, MERGE_KEYS[key], here)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_list(target: list[Any], patch: list[Any], key: str, path: str) -> list[Any]:
    if any(element == {DIRECTIVE: "replace"} for element in patch):
        return [_plain(element) for element in patch if element != {DIRECTIVE: "replace"}]
    result = [copy.deepcopy(element) for element in target]
    for index, element in enumerate(patch):
        if not isinstance(element, Mapping) or key not in element:
            raise UserError(f"{path}[{index}]: must be an object with {key}, by which it is merged")
        found = next((i for i, other in enumerate(result) if other.get(key) == element[key]), None)
        if element.get(DIRECTIVE) == "delete":
            if found is not None:
                result.pop(found)
        elif found is None:
            result.append(merge({}, element, f"{path}[{index}]"))
        else:
            result[found] = merge(result[found], element, f"{path}[{index}]")
    return result


def _plain(value: Any) -> Any:
    """A copy without directives and nulls."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != DIRECTIVE and item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value
