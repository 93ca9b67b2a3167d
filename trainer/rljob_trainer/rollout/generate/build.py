"""The job's generate function, with the clients of the services that it asks."""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from rljob.types import Engine, Sample, SamplingParams
from rljob_api.contract import environment_variables as variables
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_api.v1alpha1.rollout import RolloutSpec

from rljob_trainer.rollout.generate.base import GenerateFunction, Limits
from rljob_trainer.rollout.generate.custom import CustomGenerate
from rljob_trainer.rollout.generate.search import SearchGenerate
from rljob_trainer.rollout.generate.single_turn import SingleTurnGenerate
from rljob_trainer.rollout.generate.tool_template import ToolAnswers, offering
from rljob_trainer.rollout.generate.toolbox import Toolbox, offers
from rljob_trainer.rollout.generate.tools import ToolsGenerate
from rljob_trainer.rollout.google_client import GoogleClient
from rljob_trainer.rollout.retriever_client import RetrieverClient
from rljob_trainer.rollout.search_client import Document, SearchClient, SearchError
from rljob_trainer.rollout.web_page import PageReader


def prompt_tokenizer(tokenizer: Any, rollout: RolloutSpec) -> Any:
    """The tokenizer that prompts are rendered with: it offers the job's tools. Raises UserError."""
    return offering(tokenizer, offers(rollout.generate.tools)) if rollout.generate.type == "tools" else tokenizer


class JobGenerate:
    """Makes samples as `spec.rollout.generate` says. All methods belong to one event loop; `connect` comes first.

    Limits on what is under way hold over all engines of the job: each has its share. Raises UserError, at
    construction, for functions, schemas and secrets that cannot be had.
    """

    def __init__(self, spec: RLJobSpec, tokenizer: Any) -> None:
        rollout, self._search = spec.rollout, spec.rollout.generate.search
        generate, limits = rollout.generate, Limits(rollout.sampling.max_tokens_per_turn)
        self._type = generate.type
        self._search_limit = asyncio.Semaphore(max(1, self._search.concurrency // rollout.replicas))
        self._clients: dict[str, SearchClient] = {}
        self._connecting = asyncio.Lock()
        self._used = ""
        self._asked = 0
        self._asking: dict[int, float] = {}
        """Searches that are not answered yet: number and when they were asked."""
        self._toolbox: Toolbox | None = None
        self._function: GenerateFunction
        if generate.type == "custom":
            self._function = CustomGenerate(generate.function, generate.args)
        elif generate.type == "search":
            self._api_key = self._google_key()
            self._function = SearchGenerate(limits, self._search.max_turns, self._ask)
        elif generate.type == "tools":
            tools = generate.tools
            self._toolbox = Toolbox(tools, asyncio.Semaphore(max(1, tools.concurrency // rollout.replicas)))
            answers = ToolAnswers(prompt_tokenizer(tokenizer, rollout))
            self._function = ToolsGenerate(limits, tools.max_turns, tools.max_result_length, self._toolbox, answers)
        else:
            self._function = SingleTurnGenerate(limits)

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample:
        """See `GenerateFunction`."""
        return await self._function(sample, sampling, engine)

    async def connect(self, retriever_url: str | None) -> None:
        """Direct searches: to Google, or to `search.url`, or else to the job's retriever at `retriever_url`."""
        if self._toolbox is not None:
            await self._toolbox.open()
        if self._type != "search":
            return
        google = self._search.google if self._search.backend == "google" else None
        # An address given for this rollout wins over the job's own retriever, never over an outside one.
        url = google.url if google else self._search.url or retriever_url
        if url is None:
            raise UserError(
                "spec.rollout.generate.search: there is no retriever to ask.",
                hint="Add spec.retriever, or name one in spec.rollout.generate.search.url.",
            )
        async with self._connecting:
            if url not in self._clients:
                self._clients[url] = await self._client(url).__aenter__()
        self._used = url

    def metrics(self) -> dict[str, float]:
        """Counters since the start."""
        clients = self._clients.values()
        values = {
            "search_requests": float(sum(client.requests for client in clients)),
            "search_retries": float(sum(client.retries for client in clients)),
            "search_failures": float(sum(client.failures for client in clients)),
        }
        if box := self._toolbox:
            values |= {"tool_calls": box.calls, "tool_errors": box.errors, "tool_failures": box.failures}
        return values

    def searching(self) -> str:
        """Searches that are not answered yet, in words. For another thread to ask."""
        since = list(self._asking.values())
        if not since:
            return "no search under way"
        oldest = time.monotonic() - min(since)
        return f"{len(since)} searches unanswered for up to {oldest:.0f} s by {self._used}"

    async def close(self) -> None:
        """Close connections."""
        for client in self._clients.values():
            await client.__aexit__(None, None, None)
        self._clients.clear()
        if self._toolbox is not None:
            await self._toolbox.close()

    def _client(self, url: str) -> SearchClient:
        search, google = self._search, self._search.google
        if search.backend == "google" and google is not None:
            return GoogleClient(
                url,
                self._api_key,
                topk=search.topk,
                timeout=search.timeout_seconds,
                limit=self._search_limit,
                proxy=search.proxy,
                pages=None if google.snippet_only else PageReader(search.proxy),
            )
        return RetrieverClient(
            url, topk=search.topk, timeout=search.timeout_seconds, limit=self._search_limit, proxy=search.proxy
        )

    def _google_key(self) -> str:
        if self._search.backend != "google":
            return ""
        field = "spec.rollout.generate.search.google"
        if self._search.google is None:
            raise UserError(f"{field} is required with search backend google")
        variable = self._search.google.api_key.env or variables.SEARCH_KEY
        key = os.environ.get(variable, "").strip()
        if not key:
            raise UserError(f"{field}.apiKey: the environment variable {variable} is not set")
        return key

    async def _ask(self, query: str) -> Sequence[Document]:
        if self._used not in self._clients:
            raise SearchError("no retriever is known")
        number = self._asked = self._asked + 1
        self._asking[number] = time.monotonic()
        try:
            return await self._clients[self._used].search(query)
        finally:
            del self._asking[number]
