"""What the trainer's processes tell Prometheus: names, meanings, and the key under which the loop has the number.

docs/metrics.md is generated from this and from the other registries; a test holds them together.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True)
class Series:
    """A metric with one number of the loop, an engine or a rank."""

    name: str
    help: str
    key: str
    kind: Kind = "gauge"


DRIVER = (
    Series("rljob_reward_mean", "Mean reward of the last rollout.", "reward"),
    Series("rljob_exact_match_ratio", "Share of the last rollout's samples that match exactly.", "em"),
    Series("rljob_kl_mean", "Mean KL estimate against the reference model, in nats per token.", "kl"),
    Series("rljob_entropy_mean", "Mean entropy of the policy, in nats per token.", "entropy"),
    Series("rljob_clip_ratio", "Share of tokens whose ratio was clipped.", "clipfrac"),
    Series("rljob_policy_ratio_max", "Largest ratio of new to old probability of a token.", "ratio_max"),
    Series("rljob_gradient_norm", "Global gradient norm before clipping.", "grad_norm"),
    Series("rljob_learning_rate", "Learning rate of the last optimizer step.", "lr"),
    Series("rljob_loss", "Loss of the last optimizer step.", "loss"),
    Series("rljob_response_tokens_mean", "Mean response length in tokens, observations included.", "response_length"),
    Series("rljob_generated_tokens_mean", "Mean length of what the policy wrote, in tokens.", "generated_length"),
    Series("rljob_turns_mean", "Mean number of generations per sample.", "turns"),
    Series("rljob_searches_mean", "Mean number of searches per sample.", "searches"),
    Series(
        "rljob_groups_without_signal_ratio",
        "Share of groups whose samples all have the same reward.",
        "groups_without_signal",
    ),
    Series("rljob_groups_dropped", "Groups that the filter dropped in the last rollout.", "sampling/groups_dropped"),
    Series(
        "rljob_groups_waiting",
        "Good groups that wait for the next rollout.",
        "sampling/groups_left_ready",
    ),
    Series("rljob_groups_unfinished", "Groups to be continued in the next rollout.", "sampling/groups_left_unfinished"),
    Series("rljob_stale_token_ratio", "Share of trained tokens made by an older policy.", "sampling/stale_tokens"),
    Series("rljob_staleness_versions_mean", "Mean age of trained tokens, in policy versions.", "staleness"),
    Series("rljob_staleness_versions_max", "Age of the oldest trained token, in policy versions.", "staleness_max"),
    Series("rljob_generated_tokens_per_second", "Tokens generated per second of generation.", "tokens_per_second"),
    Series(
        "rljob_mismatch_logprob_mean",
        "Mean distance of the trainer's log-probability from the engine's.",
        "logprob_diff_mean",
    ),
    Series("rljob_mismatch_logprob_max", "Largest such distance of a token.", "logprob_diff_max"),
    Series("rljob_mismatch_kl_mean", "KL of rollout and trainer policy (k3), in nats per token.", "mismatch_kl"),
    Series("rljob_tis_ratio_mean", "Mean importance ratio of trainer to rollout, before bounds.", "tis_ratio_mean"),
    Series("rljob_tis_weight_mean", "Mean importance weight, after bounds.", "tis_weight_mean"),
    Series(
        "rljob_tis_effective_samples_ratio",
        "Effective sample size of the weights, (Σw)² ⁄ (n·Σw²).",
        "tis_effective_samples",
    ),
    Series("rljob_tis_above_ratio", "Share of units above the upper bound.", "tis_above_fraction"),
    Series("rljob_tis_below_ratio", "Share of units below the lower bound.", "tis_below_fraction"),
    Series("rljob_tis_vetoed_ratio", "Share of samples that were vetoed.", "tis_veto_fraction"),
    Series("rljob_goodput_ratio", "Share of GPU time spent generating and training, last rollout.", "goodput"),
)
ENGINE = (
    Series("rljob_engine_generated_tokens", "Tokens generated.", "generated_tokens", "counter"),
    Series("rljob_engine_prefilled_tokens", "Prompt tokens computed.", "prefilled_tokens", "counter"),
    Series("rljob_engine_steps", "Steps of the batched decoder.", "steps", "counter"),
    Series("rljob_engine_requests", "Generations asked for.", "requests", "counter"),
    Series("rljob_engine_interrupted", "Generations interrupted by new weights.", "interrupted", "counter"),
    Series("rljob_engine_busy_seconds", "Seconds in which generations were under way.", "busy_seconds", "counter"),
    Series("rljob_engine_sync_seconds", "Seconds spent taking over weights.", "sync_seconds", "counter"),
    Series("rljob_engine_running_requests", "Generations under way.", "running"),
    Series("rljob_engine_waiting_requests", "Generations that wait for a slot.", "waiting"),
    Series("rljob_engine_policy_version", "Version of the weights served; −1 before the first.", "policy_version"),
    Series("rljob_engine_samples", "Samples returned.", "samples", "counter"),
    Series("rljob_engine_failed_samples", "Samples returned as failed.", "failed_samples", "counter"),
    Series("rljob_engine_search_requests", "Searches asked of the retriever.", "search_requests", "counter"),
    Series("rljob_engine_search_retries", "Searches tried again.", "search_retries", "counter"),
    Series("rljob_engine_search_failures", "Searches given up.", "search_failures", "counter"),
    Series("rljob_engine_tool_calls", "Calls of tools.", "tool_calls", "counter"),
    Series(
        "rljob_engine_tool_errors", "Calls of tools that the tool answered with an error.", "tool_errors", "counter"
    ),
    Series("rljob_engine_tool_failures", "Calls of tools that failed.", "tool_failures", "counter"),
)
RANK = (
    Series("rljob_rank_loss", "Loss of the last step, over the global batch.", "loss"),
    Series("rljob_rank_gradient_norm", "Global gradient norm of the last step, before clipping.", "grad_norm"),
    Series("rljob_rank_batch_tokens", "Trained tokens of the last step's global batch.", "tokens"),
    Series("rljob_rank_gpu_memory_bytes", "GPU memory that this rank's tensors hold.", "gpu_memory"),
    Series("rljob_rank_gpu_memory_peak_bytes", "Most GPU memory that they held at once.", "gpu_memory_peak"),
)
OF_ROLE = {"engine": ENGINE, "rank": RANK}
