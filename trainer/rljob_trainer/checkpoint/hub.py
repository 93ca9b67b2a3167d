"""Uploading models to a Hub in the background: training never waits for it, and its failures are not fatal."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rljob_api.contract import environment_variables as variables
from rljob_api.errors import UserError
from rljob_api.v1alpha1.checkpoint import HubPush

log = logging.getLogger(__name__)
PAUSES = (5.0, 30.0)
"""Seconds before the second and the third try."""


def push_token(spec: HubPush, environment: Mapping[str, str] = os.environ) -> str:
    """The token, from the variable that the Secret's key is put in. Raises UserError when it is not set."""
    variable = spec.token.env or variables.HUB_PUSH_TOKEN
    token = environment.get(variable)
    if not token:
        raise UserError(
            f"spec.checkpoint.hub.token: the environment has no {variable}",
            hint=f"on a cluster it comes from the Secret {spec.token.name!r}; here, export it before `rljob run`",
        )
    return token


@dataclass(frozen=True, slots=True)
class Upload:
    """One thing to push."""

    name: str
    """What messages call it, such as a commit's name."""
    message: str
    """Message of the commit on the Hub."""
    make: Callable[[Path], None]
    """Writes the folder to upload, in the background."""


@dataclass(slots=True)
class _State:
    waiting: Upload | None = None
    under_way: Upload | None = None
    closed: bool = False
    told: list[str] = field(default_factory=list)


class HubPusher:
    """Pushes one upload after the other, the newest first: one that waits while a newer comes is left out, and told."""

    def __init__(
        self,
        spec: HubPush,
        token: str,
        workspace: Path,
        *,
        endpoint: str | None = None,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        """workspace: folder for what is to be uploaded. endpoint: by default HF_ENDPOINT, else huggingface.co."""
        self._spec, self._token, self._workspace, self._endpoint = spec, token, workspace, endpoint
        self._pauses = pauses
        self._state, self._changed = _State(), threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def push(self, upload: Upload) -> None:
        """Upload in the background."""
        with self._changed:
            if self._state.waiting is not None:
                self._state.told.append(f"{self._state.waiting.name} was not pushed to the Hub: a newer one came")
            self._state.waiting = upload
            self._changed.notify_all()

    def in_use(self) -> set[str]:
        """Names of what waits or is under way: its files must stay."""
        with self._changed:
            return {upload.name for upload in (self._state.waiting, self._state.under_way) if upload is not None}

    def told(self) -> list[str]:
        """What happened since the last call, in sentences."""
        with self._changed:
            told, self._state.told = self._state.told, []
            return told

    def close(self, limit: float) -> None:
        """Wait up to `limit` seconds for what is to be pushed; what is not done then is reported, and left."""
        deadline = time.monotonic() + limit
        with self._changed:
            self._state.closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._stop.set()
            for name in sorted(self.in_use()):
                self._tell(f"{name} was not pushed to the Hub within {limit:.0f} s of the end")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._state.waiting is not None or self._state.closed)
                if self._state.waiting is None:
                    return
                upload, self._state.waiting = self._state.waiting, None
                self._state.under_way = upload
            try:
                self._upload(upload)
            finally:
                with self._changed:
                    self._state.under_way = None

    def _upload(self, upload: Upload) -> None:
        folder = self._workspace / "hub"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            upload.make(folder)
            self._try(upload, folder)
        except Exception as error:
            log.exception("pushing %s to the Hub failed", upload.name)
            self._tell(f"{upload.name} was not pushed to the Hub: {_first_line(error)}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _try(self, upload: Upload, folder: Path) -> None:
        for pause in (*self._pauses, None):
            try:
                self._send(upload, folder)
            except Exception as error:
                if pause is None or _is_final(error) or self._stop.wait(pause):
                    raise
                log.warning("pushing %s to the Hub failed, trying again: %s", upload.name, _first_line(error))
            else:
                self._tell(f"{upload.name} is on the Hub: {self._spec.model_id}")
                return

    def _send(self, upload: Upload, folder: Path) -> None:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._endpoint, token=self._token)
        api.create_repo(self._spec.model_id, private=self._spec.private, exist_ok=True)
        api.upload_folder(repo_id=self._spec.model_id, folder_path=folder, commit_message=upload.message)

    def _tell(self, sentence: str) -> None:
        with self._changed:
            self._state.told.append(sentence)


def _is_final(error: Exception) -> bool:
    """Refused for good: another try would be refused again."""
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= int(status) < 500 and int(status) not in (408, 409, 429)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
