"""What a run is given and never changes: the job, its directory, its rows, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rljob_api.rules.arithmetic import rl_steps, sft_steps, total_steps, trains, trains_rl
from rljob_api.v1alpha1.evaluation import EvalDataset
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.data.hub import HubAccess
from rljob_trainer.data.prompts import PromptRow, PromptSource, load_eval
from rljob_trainer.data.sft import SftSource
from rljob_trainer.health.rollback import Rollback
from rljob_trainer.models import load_tokenizer
from rljob_trainer.orchestrator.job_directory import Incarnation
from rljob_trainer.rewards.labels import check_labels
from rljob_trainer.rollout.generate.build import prompt_tokenizer
from rljob_trainer.rollout.samples import em_label, salted


@dataclass
class EvalSet:
    """An evaluation set and its rows."""

    spec: EvalDataset
    rows: Sequence[PromptRow]


class JobData:
    """The job's rows, read once. Demonstrations are left out when `sft_done` and nothing depends on their number; after
    `rollbacks` they come in another order."""

    def __init__(self, job: RLJob, job_dir: Path, *, sft_done: bool = False, rollbacks: int = 0) -> None:
        spec = job.spec
        self.tokenizer = load_tokenizer(spec.model, job_dir)
        cache = spec.model.cache_dir
        hub = HubAccess(Path(job_dir, cache) if cache else None, offline=spec.model.offline)
        self.prompts = None
        prompts_with = prompt_tokenizer(self.tokenizer, spec.rollout)
        if (trains_rl(spec) or spec.mode == "Generate") and spec.data.train is not None:
            self.prompts = PromptSource(spec.data.train, prompts_with, job_dir, spec.seed, hub)
            check_labels(self.prompts.rows, spec.reward, "spec.data.train")
        self.evaluation = []
        self.skipped: dict[str, int] = {}
        for number, dataset in enumerate(spec.evaluation.datasets if spec.mode != "Generate" else []):
            loaded = load_eval(dataset, prompts_with, job_dir, f"spec.evaluation.datasets[{number}]", hub)
            check_labels(loaded.rows, spec.reward, f"spec.evaluation.datasets[{number}]")
            self.evaluation.append(EvalSet(dataset, loaded.rows))
            self.skipped[f"evaluation/{dataset.name}"] = loaded.skipped
        # Last: demonstrations take minutes to tokenise, and what is wrong with the others is found before.
        self.sft = None
        if spec.sft is not None and trains(spec) and not (sft_done and spec.sft.num_steps is not None):
            self.sft = SftSource(
                spec.sft.dataset,
                self.tokenizer,
                job_dir,
                batch_size=spec.sft.batch_size,
                seed=salted(spec.seed, rollbacks),
                max_length=spec.sft.max_sequence_length,
                packing=spec.sft.packing,
                hub=hub,
            )
        if self.prompts is not None:
            self.skipped["prompts"] = self.prompts.skipped
        if self.sft is not None:
            self.skipped["demonstrations"] = self.sft.skipped

    def total_steps(self, job: RLJob) -> int:
        """Steps of the job, now that its rows are counted."""
        rows = None if self.sft is None else len(self.sft)
        return total_steps(job.spec, rows, None if self.prompts is None else len(self.prompts)) or 0


@dataclass(frozen=True)
class RunContext:
    """Handed to every stage. What changes is `LoopState`'s, and the workers'."""

    job: RLJob
    incarnation: Incarnation
    data: JobData
    rollbacks: tuple[Rollback, ...] = ()
    """Those of the job so far."""
    retriever_url: str | None = None

    @cached_property
    def seed(self) -> int:
        """Seed of what is sampled for training: after a rollback not the same again."""
        return salted(self.job.spec.seed, len(self.rollbacks))

    @cached_property
    def sft_steps(self) -> int:
        """Optimizer steps of supervised fine-tuning."""
        return sft_steps(self.job.spec, len(self.data.sft) if self.data.sft else None) or 0

    @cached_property
    def rl_steps(self) -> int:
        """Optimizer steps of reinforcement learning."""
        return rl_steps(self.job.spec)

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole job."""
        return self.data.total_steps(self.job)

    @cached_property
    def em_label(self) -> str | None:
        """Name in `Sample.reward_parts` of the function that tells right from wrong, if the reward has one."""
        return em_label(self.job.spec.reward)
