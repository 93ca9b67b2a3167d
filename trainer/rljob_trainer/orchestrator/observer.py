"""What watches a run: recorder, phase timer, learning health, watchdog, and the heartbeat of a driver that waits."""

import time
from collections.abc import Callable

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.metrics.timing import PhaseTimer
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.learning_health import LearningHealth
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.watch.watchdog import Watchdog

BEAT_SECONDS = 5.0
"""While workers are waited for, the progress is brought up to date this often."""


class Observer:
    """What every stage reports to and is timed by.

    `beat` is a callback rather than a task of an event loop: everything the driver does happens in one thread, in an
    order that depends on tokens and steps alone, which is what a resume repeats bit for bit.
    """

    def __init__(self, context: RunContext, state: LoopState, stop: StopFlag, recorder: Recorder) -> None:
        self.recorder = recorder
        self.timer = PhaseTimer()
        self.health = LearningHealth(context.job, context.incarnation, recorder, list(context.rollbacks))
        self.watchdog = Watchdog(context.incarnation.directory, context.job.spec.lifecycle.stall, recorder.stalled)
        self._while_waiting: Callable[[], None] = lambda: None
        self._state, self._stop = state, stop
        self._last_beat = time.monotonic()

    def beat(self) -> None:
        """Runs about once a second while workers are waited for. Raises Stop when this driver may not go on."""
        if self._stop.fenced:
            self._stop.check()
        self._while_waiting()
        if time.monotonic() - self._last_beat > BEAT_SECONDS:
            self._last_beat = time.monotonic()
            self.recorder.stand(self._state)

    def set_while_waiting(self, action: Callable[[], None]) -> None:
        """What else is to be done about once a second while workers are waited for, in the place of what was."""
        self._while_waiting = action
