"""From prompt rows to samples, and from scored samples to what the ranks train on.

A sample's seed is a function of where it stands in the run, never of when or where it is generated.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from rljob.types import Sample, SamplingParams, Tokenizer, TrainSample
from rljob_api.catalogue.rewards import REWARDS
from rljob_api.v1alpha1.algorithm import AlgorithmSpec
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_api.v1alpha1.rollout import SamplingSpec

from rljob_trainer.rollout.advantages import Ask, Credit, credit_of, train_sample


def salted(job_seed: int, rollbacks: int) -> int:
    """The job's seed after so many rollbacks: another one each time, so that the same samples do not come again."""
    if rollbacks == 0:
        return job_seed
    return int.from_bytes(blake2b(f"{job_seed}/rollback/{rollbacks}".encode(), digest_size=4).digest(), "big") >> 1


def sample_seed(job_seed: int, stage: str, rollout: int, group: int, index: int) -> int:
    """63-bit seed of one sample.

    `stage` is `train` or the name of an evaluation; `rollout` counts from 0; `group` is the prompt's number in the
    rollout, `index` the sample's in its group.
    """
    text = f"{job_seed}/{stage}/{rollout}/{group}/{index}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def make_samples(
    rows: Sequence[Any], per_prompt: int, *, job_seed: int, stage: str, rollout: int, first_group: int = 0
) -> list[Sample]:
    """`per_prompt` samples of each row, groups in the order of `rows`, numbered from `first_group`."""
    return [
        Sample(
            prompt=row.prompt,
            prompt_ids=list(row.prompt_ids),
            label=row.label,
            metadata=dict(row.metadata),
            source=row.source,
            row=row.row,
            group=group,
            index=index,
            seed=sample_seed(job_seed, stage, rollout, group, index),
        )
        for group, row in enumerate(rows, start=first_group)
        for index in range(per_prompt)
    ]


def sampling_params(spec: SamplingSpec) -> SamplingParams:
    """What the engines are asked for."""
    return SamplingParams(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        max_new_tokens=spec.max_response_length,
        stop=tuple(spec.stop),
    )


def trainable(sample: Sample) -> bool:
    """Whether the sample can be trained on: it was generated to its end (or its limit), scored, and has tokens."""
    return sample.status in ("completed", "truncated") and sample.reward is not None and any(sample.loss_mask)


def advantages_of(samples: Sequence[Sample], spec: AlgorithmSpec, ask: Ask | None = None) -> dict[int, Credit]:
    """Credit by the number of the sample. Failed samples have none and do not count in their group. `ask` reaches the
    ranks, for algorithms that need more than rewards."""
    numbers = [number for number, sample in enumerate(samples) if trainable(sample)]
    if not numbers:
        return {}
    return dict(zip(numbers, credit_of([samples[number] for number in numbers], spec, ask), strict=True))


def train_batches(samples: Sequence[Sample], advantages: Mapping[int, Credit], steps: int) -> list[list[TrainSample]]:
    """The rollout cut into `steps` batches of whole groups where that divides, none of its samples left over."""
    size = len(samples) // steps
    batches = []
    for step in range(steps):
        numbers = range(step * size, (step + 1) * size if step < steps - 1 else len(samples))
        batches.append(
            [train_sample(samples[number], advantages[number]) for number in numbers if number in advantages]
        )
    return batches


def em_label(reward: RewardSpec | None) -> str | None:
    """Name in `reward_parts` of the first function that tells right from wrong, if the reward has one."""
    functions = reward.functions if reward is not None else []
    right = [function for function in functions if function.name in REWARDS and REWARDS[function.name].tells_right]
    return (right[0].label or right[0].name) if right else None


def score_of(sample: Sample, em: str | None) -> float:
    """Right or wrong, 1 or 0 (a format score is not counted), by the function of the name `em`; without one, the
    reward."""
    if em is None:
        return sample.reward or 0.0
    return float(sample.reward_parts.get(em, 0.0) >= 1.0)


def rollout_metrics(samples: Sequence[Sample], em: str | None) -> dict[str, float]:
    """Means over the samples of a rollout: reward and its parts, lengths, counters of the generate function."""
    count = max(len(samples), 1)
    values: dict[str, float] = {
        "reward": sum(sample.reward or 0.0 for sample in samples) / count,
        "response_length": sum(len(sample.response_ids) for sample in samples) / count,
        "generated_length": sum(sum(sample.loss_mask) for sample in samples) / count,
    }
    if em is not None:
        values["em"] = sum(score_of(sample, em) for sample in samples) / count
    parts: Counter[str] = Counter()
    for sample in samples:
        parts.update({f"reward/{name}": value for name, value in sample.reward_parts.items()})
        parts.update({name: float(value) for name, value in sample.info.items() if isinstance(value, int | float)})
    values.update({name: value / count for name, value in parts.items()})
    by_source: dict[str, list[float]] = {}
    for sample in samples:
        if sample.source:
            by_source.setdefault(sample.source, []).append(sample.reward or 0.0)
    values.update({f"reward_by_source/{name}": sum(found) / len(found) for name, found in by_source.items()})
    for status, number in Counter(sample.status for sample in samples).items():
        if status != "completed":
            values[f"status/{status}"] = float(number)
    groups: dict[int, set[float]] = {}
    for sample in samples:
        groups.setdefault(sample.group, set()).add(sample.reward or 0.0)
    values["groups_without_signal"] = sum(len(rewards) == 1 for rewards in groups.values()) / max(len(groups), 1)
    return values


def staleness_of(samples: Sequence[Sample], policy_version: int) -> dict[str, float]:
    """Age of the generated tokens in policy versions, when the weights of `policy_version` are trained."""
    ages = [policy_version - version for sample in samples for version in sample.policy_versions if version >= 0]
    return {"staleness": sum(ages) / max(len(ages), 1), "staleness_max": float(max(ages, default=0))}


def segments_of(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The response as text, cut where the loss mask changes: (text, whether it is trained on)."""
    segments: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(sample.response_ids) + 1):
        if end == len(sample.response_ids) or sample.loss_mask[end] != sample.loss_mask[start]:
            text = tokenizer.decode(sample.response_ids[start:end], skip_special_tokens=False)
            segments.append((text, bool(sample.loss_mask[start])))
            start = end
    return segments
