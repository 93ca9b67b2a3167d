"""Where an incarnation works."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where this incarnation works."""

    job_dir: Path
    incarnation: str
    attempt: int
    local: bool
    retriever_url: str | None = None

    @property
    def directory(self) -> Path:
        """The incarnation's own directory, the only one it writes to."""
        return self.job_dir / "attempts" / self.incarnation
