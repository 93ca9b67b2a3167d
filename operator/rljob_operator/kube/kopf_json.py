"""kopf parses what it lists and watches with the json module, which fails at some 1,500 levels: it is given our parser.

It has no setting for that. A test with a manifest that deep on a real apiserver tells when a version of kopf or aiohttp
no longer looks here.
"""

import json
from types import SimpleNamespace
from typing import Any

import aiohttp
from kopf._cogs.clients import api
from rljob_api.manifest.nesting import MAX_DEPTH

from rljob_operator.kube.deep_json import WRAPPED, loads, trimmed


def parse(text: str) -> Any:
    """As json.loads, with what is nested too deeply cut off."""
    return trimmed(loads(text), MAX_DEPTH + WRAPPED)


def teach_kopf() -> None:
    """From now on kopf parses with `parse`."""
    vars(api)["json"] = SimpleNamespace(loads=parse, dumps=json.dumps)
    (aiohttp.ClientResponse.json.__kwdefaults__ or {})["loads"] = parse
