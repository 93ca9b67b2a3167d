"""What one job learns."""

from charts.dashboards.board import Board, Panel, Query, Row
from charts.dashboards.queries import EACH, JOB, OF_JOB, now, rate

BOARD = Board(
    "learning",
    "Learning",
    "Reward, scores and the health of the policy of one RLJob.",
    variables=OF_JOB,
    rows=(
        Row(
            "Where it stands",
            (
                Panel("Step", (now("rljob_step"),), "Optimizer steps trained.", "none", "stat", 4),
                Panel(
                    "Done",
                    (Query(f"rljob_step{{{JOB}}} / rljob_steps_planned{{{JOB}}}", EACH),),
                    "Share of the steps asked for.",
                    "percentunit",
                    "stat",
                    4,
                ),
                Panel("Reward", (now("rljob_reward_mean"),), "Mean of the last rollout.", "short", "stat", 4),
                Panel(
                    "Goodput",
                    (now("rljob_goodput_ratio"),),
                    "GPU time generating or training.",
                    "percentunit",
                    "stat",
                    4,
                ),
                Panel("Stage", (now("rljob_stage", "{{stage}}"),), "What the driver does.", "none", "stat", 4),
                Panel(
                    "Last progress",
                    (Query(f"time() - rljob_last_progress_timestamp_seconds{{{JOB}}}", EACH),),
                    "Since the last step, rollout, evaluation or commit.",
                    "s",
                    "stat",
                    4,
                ),
            ),
        ),
        Row(
            "Reward",
            (
                Panel("Reward", (now("rljob_reward_mean"),), "Mean over a rollout."),
                Panel("Reward by component", (now("rljob_reward_component_mean", "{{component}}"),), "Before weights."),
                Panel(
                    "Reward by data source", (now("rljob_source_reward_mean", "{{source}}"),), "Mean over a rollout."
                ),
                Panel(
                    "Exact match",
                    (now("rljob_exact_match_ratio"),),
                    "Of training samples.",
                    "percentunit",
                    low=0,
                    high=1,
                ),
                Panel("Evaluation", (now("rljob_evaluation_score", "{{set}}"),), "Last score by evaluation set."),
                Panel(
                    "Groups without signal",
                    (now("rljob_groups_without_signal_ratio"),),
                    "Groups whose samples all earn the same teach nothing.",
                    "percentunit",
                    low=0,
                    high=1,
                ),
            ),
        ),
        Row(
            "Policy",
            (
                Panel("KL to the reference", (now("rljob_kl_mean"),), "Nats per token."),
                Panel("Entropy", (now("rljob_entropy_mean"),), "Nats per token; near 0 the policy no longer explores."),
                Panel(
                    "Clipped tokens",
                    (now("rljob_clip_ratio"),),
                    "Share of tokens beyond the clip range.",
                    "percentunit",
                ),
                Panel("Gradient norm", (now("rljob_gradient_norm"),), "Before clipping."),
                Panel("Loss", (now("rljob_loss"),), "Of the last optimizer step."),
                Panel("Learning rate", (now("rljob_learning_rate"),), "Of the last optimizer step."),
            ),
        ),
        Row(
            "Mismatch of trainer and engines",
            (
                Panel(
                    "Log-probability distance",
                    (now("rljob_mismatch_logprob_mean", "mean"), now("rljob_mismatch_logprob_max", "max")),
                    "The same token under the trainer's weights and the engine's.",
                ),
                Panel("Mismatch KL", (now("rljob_mismatch_kl_mean"),), "Nats per token (k3)."),
                Panel(
                    "Importance weights (TIS)",
                    (
                        now("rljob_tis_weight_mean", "mean weight"),
                        now("rljob_tis_effective_samples_ratio", "effective samples"),
                    ),
                    "Only with algorithm.tis.enabled.",
                ),
                Panel(
                    "Beyond the TIS bounds",
                    (
                        now("rljob_tis_above_ratio", "above"),
                        now("rljob_tis_below_ratio", "below"),
                        now("rljob_tis_vetoed_ratio", "vetoed"),
                    ),
                    "Share of units; of samples for vetoed.",
                    "percentunit",
                ),
                Panel(
                    "Staleness",
                    (now("rljob_staleness_versions_mean", "mean"), now("rljob_staleness_versions_max", "max")),
                    "Age of trained tokens in policy versions.",
                    "none",
                ),
                Panel("Policy version", (now("rljob_policy_version"),), "Version that the engines serve.", "none"),
            ),
        ),
        Row(
            "Samples",
            (
                Panel(
                    "Lengths",
                    (now("rljob_response_tokens_mean", "response"), now("rljob_generated_tokens_mean", "generated")),
                    "Mean tokens; the response holds observations, too.",
                ),
                Panel(
                    "Turns and searches",
                    (now("rljob_turns_mean", "turns"), now("rljob_searches_mean", "searches")),
                    "Mean per sample.",
                ),
                Panel(
                    "Failed or cut off",
                    (rate("rljob_failed_samples_total", "status"),),
                    "Samples per second by status.",
                ),
            ),
        ),
    ),
)
