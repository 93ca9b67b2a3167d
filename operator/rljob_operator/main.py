"""The process: kopf watches RLJobs, reflectors watch what belongs to them, our queue works.

kopf gets an `on.event` handler alone. Its change handlers would store the whole spec in an annotation and patch objects
on their own; an event handler only remembers the object and says which job to look at, and writes nothing. The dozen
objects of each job are watched beside kopf, which spends ten times as much on an event as a plan needs.
"""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
from kopf._cogs.clients import api
from rljob_api.contract import labels
from rljob_api.manifest.nesting import MAX_DEPTH

from rljob_operator import log
from rljob_operator.controller.controller import Controller
from rljob_operator.kube.cache import Cache, CachedKube
from rljob_operator.kube.client import HttpKube
from rljob_operator.kube.credentials import headers, login
from rljob_operator.kube.objects import RLJOB, name_of
from rljob_operator.kube.reflector import Reflectors
from rljob_operator.kube.trimming import WRAPPED, loads, shallow
from rljob_operator.metrics import Metrics
from rljob_operator.server import serve
from rljob_operator.settings import Settings

logger = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Pauses between watches that end with an error."""
YOUNG_OBJECTS = 20_000
"""New objects between two collections: a look makes thousands, nearly all of them gone by their count of references."""
INACTIVITY_SECONDS = 90.0
"""A watch without an event or a bookmark for so long is taken for dead and opened anew."""


RELIST_SECONDS = 2.0
"""Pause before kopf lists all RLJobs anew, as after a version that is too old for a watch. Its own default is 0.1 s."""


class _NoDifferences(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Nothing is kept to compare an object with: only kopf's change handlers, of which there are none, would ask. Its
    own storages copy the whole object at every event."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """Nothing of the object."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing of before."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing to keep."""


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """kopf, kept from writing anything, with server-side filters."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.peering.standalone = True
    result.persistence.diffbase_storage = _NoDifferences()
    result.persistence.finalizer = f"{labels.FINALIZER}-kopf-unused"
    result.watching.inactivity_timeout = INACTIVITY_SECONDS
    result.watching.server_timeout = 300  # kopf passes it on as it is written: the apiserver wants an integer
    result.watching.connect_timeout = settings.request_timeout_seconds
    result.watching.chunk_size = 200
    result.watching.reconnect_backoff = RELIST_SECONDS
    result.networking.request_timeout = 60.0
    result.queueing.idle_timeout = 1.0
    result.process.ultimate_exiting_timeout = 20.0
    return result


def handlers(controller: Controller, cache: Cache) -> kopf.OperatorRegistry:
    """The event handler: it keeps the RLJob, and says that it is to be looked at when anything of it has changed."""
    registry = kopf.OperatorRegistry()

    async def of_job(event: Mapping[str, Any], **_: Any) -> None:
        obj = {**event["object"], "apiVersion": RLJOB.api_version, "kind": RLJOB.kind}
        if cache.drop(obj) if event["type"] == "DELETED" else cache.put(obj):
            controller.look_at(obj["metadata"]["namespace"], name_of(obj))

    kopf.on.login(registry=registry)(login)
    kopf.on.event("rljob.io", "v1alpha1", RLJOB.plural, registry=registry)(of_job)
    return registry


def parse_shallow(text: str) -> Any:
    """As json.loads, with what is nested too deeply cut off."""
    return shallow(loads(text), MAX_DEPTH + WRAPPED)


def teach_kopf() -> None:
    """From now on kopf parses what it lists and watches with `parse_shallow`; the json module fails at 1,500 levels.

    kopf has no setting for that. A test with a manifest that deep on a real apiserver tells when a version of kopf or
    aiohttp no longer looks here.
    """
    vars(api)["json"] = SimpleNamespace(loads=parse_shallow, dumps=json.dumps)
    (aiohttp.ClientResponse.json.__kwdefaults__ or {})["loads"] = parse_shallow


async def run(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run the operator until it is told to stop (SIGTERM, SIGINT, `stop`)."""
    info, metrics = login(), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        live = HttpKube(session, info.server, headers(info), info.as_ssl_context(), settings.request_timeout_seconds)
        cache = Cache()
        controller = Controller(CachedKube(live, cache), settings, metrics, live)
        reflectors = Reflectors(
            live, cache, controller.look_at, settings.watch_namespaces, settings.resync_seconds, kueue=settings.kueue
        )
        controller.synced = reflectors.synced
        server = await serve(settings.port, controller.canary, lambda: controller.listed, metrics)
        stack.push_async_callback(server.cleanup)
        await stack.enter_async_context(reflectors.running())
        await stack.enter_async_context(controller.running())
        await watch(controller, cache, settings, stop)


async def watch(controller: Controller, cache: Cache, settings: Settings, stop: asyncio.Event | None) -> None:
    """Watch until the process is told to stop.

    kopf ends on an answer that it does not know what to do with (410 or 404 to a watch); the queue and its resync do
    not depend on it, so the watches are opened anew, after a pause that grows while it goes on like that.
    """
    pause, told = FIRST_PAUSE_SECONDS, asyncio.Event()
    while not told.is_set():
        begun = time.monotonic()
        try:
            await kopf.operator(
                registry=handlers(controller, cache),
                settings=kopf_settings(settings),
                clusterwide=not settings.watch_namespaces,
                namespaces=list(settings.watch_namespaces),
                standalone=True,
                stop_flag=stop,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the jobs go on by the resync, and the log says it
            if time.monotonic() - begun > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error("the watches ended: %s: %s; opened anew in %.0f s", type(error).__name__, error, pause)
            # kopf listens to signals only while it runs.
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, told.set)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return


def main() -> None:
    """Entry point of `python -m rljob_operator`."""
    settings = Settings.load()
    teach_kopf()
    log.configure(settings.log_level, settings.log_format)
    logger.info("starting: %s", settings)
    gc.freeze()  # the modules stay
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    asyncio.run(run(settings))
