"""A whole run of PPO: critic, KL in the reward, several steps per rollout, two ranks with balanced shares."""

import pytest

from .conftest import TinyRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_ppo_with_a_critic_over_two_ranks(tiny: TinyRun) -> None:
    spec = tiny.manifest["spec"]
    spec["sft"]["numSteps"] = 1
    spec["rollout"]["numRollout"] = 2
    spec["trainer"] |= {"ranksPerReplica": 2, "balanceData": True, "numStepsPerRollout": 2}
    spec["evaluation"] = {"datasets": []}
    spec["algorithm"] = {
        "advantageEstimator": "gae",
        "gaeLambda": 0.95,
        "kl": {"rewardCoef": 0.05, "estimator": "k1"},
        "lossAggregation": "per_prompt",
        "tis": {"enabled": True, "level": "geometric", "mode": "mask", "lowerBound": 0.5, "batchNormalize": True},
        "critic": {"optimizer": {"lr": 0.01}},
    }
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    records = tiny.records("rl")
    assert len(records) == 2
    assert tiny.summary()["state"] == "Succeeded"
    for record in records:
        assert record["value_loss"] >= 0.0
        assert record["critic_grad_norm"] > 0.0
        assert record["tis_effective_samples"] == pytest.approx(1.0, abs=1e-3)
        assert record["samples"] == 6
