"""The process: kopf watches, our queue works.

kopf gets `on.event` handlers alone. Its change handlers would store the whole spec in an annotation and patch objects
on their own; an event handler only says which job to look at, and writes nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
import kopf

from rljob_operator import labels, log
from rljob_operator.controller import Controller
from rljob_operator.credentials import headers, login
from rljob_operator.kube import HttpKube
from rljob_operator.metrics import Metrics
from rljob_operator.server import serve
from rljob_operator.settings import Settings

logger = logging.getLogger(__name__)
WATCHED_CHILDREN = (
    ("ray.io", "v1", "rayjobs"),
    ("ray.io", "v1", "rayclusters"),
    ("apps", "v1", "deployments"),
    ("", "v1", "pods"),
    ("", "v1", "configmaps"),
)
INACTIVITY_SECONDS = 90.0
"""A watch without an event or a bookmark for so long is taken for dead and opened anew."""


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """kopf, kept from writing anything, with server-side filters."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.peering.standalone = True
    result.persistence.finalizer = f"{labels.FINALIZER}-kopf-unused"
    result.watching.inactivity_timeout = INACTIVITY_SECONDS
    result.watching.server_timeout = 300  # kopf passes it on as it is written: the apiserver wants an integer
    result.watching.connect_timeout = settings.request_timeout_seconds
    result.watching.chunk_size = 200
    result.networking.request_timeout = 60.0
    result.queueing.idle_timeout = 1.0
    result.process.ultimate_exiting_timeout = 20.0
    for group, version, plural in WATCHED_CHILDREN:
        # The other ConfigMaps hold manifests and code: large, and changed by the operator alone.
        only = f",app.kubernetes.io/component={labels.PROGRESS_COMPONENT}" if plural == "configmaps" else ""
        key = (group, version, plural) if group else (version, plural)
        result.watching.label_selectors[key] = f"{labels.JOB}{only}"
    return result


def handlers(controller: Controller) -> kopf.OperatorRegistry:
    """The event handlers: an RLJob's own key, or that of the job that a child is labelled with."""
    registry = kopf.OperatorRegistry()

    async def of_job(namespace: str | None, name: str | None, **_: Any) -> None:
        if namespace and name:
            controller.look_at(namespace, name)

    async def of_child(namespace: str | None, meta: Mapping[str, Any], **_: Any) -> None:
        if namespace and (job := (meta.get("labels") or {}).get(labels.JOB)):
            controller.look_at(namespace, job)

    kopf.on.login(registry=registry)(login)
    kopf.on.event("rljob.io", "v1alpha1", "rljobs", registry=registry)(of_job)
    for group, version, plural in WATCHED_CHILDREN:
        selector = (group, version, plural) if group else (version, plural)
        kopf.on.event(*selector, registry=registry)(of_child)
    return registry


async def run(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run the operator until it is told to stop (SIGTERM, SIGINT, `stop`)."""
    info, metrics = login(), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        kube = HttpKube(session, info.server, headers(info), info.as_ssl_context(), settings.request_timeout_seconds)
        controller = Controller(kube, settings, metrics)
        server = await serve(settings.port, controller.canary, lambda: controller.listed, metrics)
        stack.push_async_callback(server.cleanup)
        await stack.enter_async_context(controller.running())
        await kopf.operator(
            registry=handlers(controller),
            settings=kopf_settings(settings),
            clusterwide=not settings.watch_namespaces,
            namespaces=list(settings.watch_namespaces),
            standalone=True,
            stop_flag=stop,
        )


def main() -> None:
    """Entry point of `python -m rljob_operator`."""
    settings = Settings.load()
    log.configure(settings.log_level, settings.log_format)
    logger.info("starting: %s", settings)
    asyncio.run(run(settings))
