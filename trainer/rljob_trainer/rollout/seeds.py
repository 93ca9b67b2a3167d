"""Seeds of samples: a function of where a sample stands in the run, never of when or where it is generated."""

from hashlib import blake2b


def salted(job_seed: int, rollbacks: int) -> int:
    """The job's seed after so many rollbacks: another one each time, so that the same trouble does not come again."""
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
