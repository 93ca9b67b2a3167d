"""The driver in a copy of a warm process, with Ray workers that are such copies as well."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rljob_trainer import driver
from rljob_trainer.local.processes import Child

from trainer.tests.warm import COLD, WarmProcess
from trainer.tests.warm_ray import serve_workers


def main(arguments: list[str]) -> int:
    """`driver.main`; returns its exit code."""
    serve_workers(driver.parse(arguments).dir)
    _leave_daemons_out()
    return driver.main(arguments)


def _leave_daemons_out() -> None:
    """Ray's dashboard, autoscaler and log monitor have nothing to do for a driver that needs none of them, and cost as
    much CPU as the run itself. Ray has no setting for it."""
    from ray._private.node import Node

    def no_dashboard(node: Any, **options: Any) -> None:
        node._webui_url = ""

    Node.start_api_server = no_dashboard
    Node.start_monitor = Node.start_log_monitor = lambda node: None


class WarmChild(Child):
    """Of the children of `rljob run`, the driver is such a copy; the others are what they are."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path | None = None, grace: float = 10.0
    ) -> None:
        if name != "driver" or COLD:
            super().__init__(name, command, env=env, log=log, grace=grace)
            return
        self.name, self.log, self._grace, self._file = name, None, grace, None
        arguments = list(command[command.index("rljob_trainer.driver") + 1 :])
        output = Path(driver.parse(arguments).dir, "driver")
        process: Any = WarmProcess(main, arguments, env=env, output=output)
        self.process = process
