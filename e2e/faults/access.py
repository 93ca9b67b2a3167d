"""An apiserver as its admin reaches it: from a kubeconfig with a client certificate."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml
from rljob_operator.kube.client import ApiError, HttpKube
from rljob_operator.kube.objects import RAY_JOB, RLJOB, Kind, Obj, name_of
from rljob_operator.kube.trimming import loads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_LINE = 2**22
"""Longest line of a watch, in bytes."""


@dataclass(frozen=True)
class Access:
    """Where an apiserver is and how to speak to it."""

    server: str
    ssl: ssl.SSLContext
    headers: Mapping[str, str]

    @classmethod
    def load(cls, kubeconfig: str) -> Access:
        """The current context of a kubeconfig. Raises KeyError when it has none."""
        config: dict[str, Any] = yaml.safe_load(Path(kubeconfig).read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        secure = ssl.create_default_context()
        if authority := cluster.get("certificate-authority-data"):
            secure.load_verify_locations(cadata=base64.b64decode(authority).decode())
        elif file := cluster.get("certificate-authority"):
            secure.load_verify_locations(cafile=file)
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = (_file(user, name, Path(folder)) for name in ("client-certificate", "client-key"))
            if certificate and key:
                secure.load_cert_chain(certificate, key)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        return cls(cluster["server"].rstrip("/"), secure, headers)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _file(user: Mapping[str, str], key: str, folder: Path) -> str | None:
    if data := user.get(f"{key}-data"):
        path = folder / key
        path.touch(mode=0o600)
        path.write_bytes(base64.b64decode(data))
        return str(path)
    return user.get(key)


class Admin(HttpKube):
    """The operator's own client, with watches, for the test's side of the wire."""

    def __init__(self, session: aiohttp.ClientSession, access: Access) -> None:
        super().__init__(session, access.server, lambda: dict(access.headers), access.ssl, 30.0)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, access: Access) -> AsyncIterator[Admin]:
        """A client for as long as the block lasts."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=_LINE) as session:
            yield cls(session, access)

    async def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, *arguments: Any, **options: Any
    ) -> Obj | None:
        """Under a name of its own: the operator need not look at what it has written itself."""
        if query and "fieldManager" in query:
            query = {**query, "fieldManager": "rljob-faults"}
        return await super()._call(method, path, query, *arguments, **options)

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Obj] | None:
        """Objects as they are: the operator's own client leaves out what the operator does not keep."""
        query = {"labelSelector": selector} if selector else {}
        answer = await self._call("GET", kind.path(namespace), query) or {}
        return [item | {"apiVersion": kind.api_version, "kind": kind.kind} for item in answer["items"]]

    async def raw(self, method: str, path: str, body: Any = None) -> Obj | None:
        """Any call; None for 404."""
        return await self._call(method, path, {}, body, absent=True)

    async def tear_down(self, namespace: str) -> None:
        """Delete a namespace, whatever finalizers its objects have; the rest is the controller-manager's."""
        for kind in (RLJOB, RAY_JOB):
            for obj in await self.list(kind, namespace) or []:
                if obj["metadata"].get("finalizers"):
                    with contextlib.suppress(ApiError):
                        await self.patch(kind, namespace, name_of(obj), {"metadata": {"finalizers": None}})
        await self.raw("DELETE", f"/api/v1/namespaces/{namespace}")

    async def update(
        self, kind: Kind, namespace: str, name: str, change: Callable[[Obj], Any], tries: int = 20
    ) -> None:
        """Merge-patch an object with what `change` makes of it, anew when another write came between."""
        for _ in range(tries):
            obj = await self.get(kind, namespace, name)
            if obj is None or (patch := change(obj)) is None:
                return
            patch.setdefault("metadata", {})["resourceVersion"] = obj["metadata"]["resourceVersion"]
            try:
                await self.patch(kind, namespace, name, patch)
                return
            except ApiError as error:
                if error.status != 409:
                    raise
        raise AssertionError(f"{kind.kind} {namespace}/{name}: written by others all the time")

    async def follow(self, kind: Kind, selector: str, see: Callable[[str, Obj], None]) -> None:
        """List, then watch for ever: `see(type, object)`, with type ADDED, MODIFIED or DELETED."""
        query = {"labelSelector": selector} if selector else {}
        version = ""
        while True:
            try:
                if not version:
                    listed = await self._call("GET", kind.path(None), query) or {}
                    version = listed["metadata"]["resourceVersion"]
                    for item in listed["items"]:
                        see("ADDED", item | {"apiVersion": kind.api_version, "kind": kind.kind})
                more = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
                async with self._session.get(
                    self._server + kind.path(None),
                    params=query | more,
                    headers=self._headers(),
                    ssl=self._ssl,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                ) as response:
                    if response.status != 200:
                        version = ""
                        await asyncio.sleep(0.2)
                        continue
                    async for line in response.content:
                        event = loads(line)
                        if event["type"] == "ERROR":
                            version = ""
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            see(event["type"], event["object"])
            except (aiohttp.ClientError, ApiError, TimeoutError):
                await asyncio.sleep(0.2)
