"""Which sections of the spec a mode needs, and which it has no use for."""

from rljob_api.rules.expression import choose, field, filled, has
from rljob_api.rules.rule import Rule, text

MODE = field("mode")
TRAINS = MODE == "Train"
RL = TRAINS & (field("algorithm.type") == "rl")
SFT_ALONE = TRAINS & (field("algorithm.type") == "sft")
EVALUATES = filled("evaluation.datasets")
GENERATES = (MODE != "Train") | (field("algorithm.type") == "rl") | EVALUATES
PROMPTS = has("data") & has("data.train")

NEEDED_SECTIONS = (
    Rule("spec", has("sft"), "required when spec.algorithm.type is sft", "sft", when=SFT_ALONE, required=True),
    Rule("spec", has("reward"), "required for reinforcement learning", "reward", when=RL, required=True),
    Rule(
        "spec",
        has("reward"),
        text("required to {}", choose(MODE == "Evaluate", "evaluate", "generate")),
        "reward",
        when=MODE != "Train",
        required=True,
        admission_says="required to evaluate or generate",
    ),
    Rule("spec", PROMPTS, "required for reinforcement learning", "data.train", when=RL, required=True),
    Rule("spec", PROMPTS, "required to generate", "data.train", when=MODE == "Generate", required=True),
    Rule(
        "spec",
        EVALUATES,
        "at least one data set is required to evaluate",
        "evaluation.datasets",
        when=MODE == "Evaluate",
        required=True,
    ),
    Rule(
        "spec",
        has("reward"),
        "required to score spec.evaluation.datasets",
        "reward",
        when=SFT_ALONE & EVALUATES,
        required=True,
    ),
)

GENERATE_ONLY = (
    Rule(
        "spec",
        ~has("rollout.dynamicFilter"),
        "is for training; a generate-only job filters by spec.output",
        "rollout.dynamicFilter",
        when=MODE == "Generate",
    ),
    Rule(
        "spec",
        ~has("rollout.overSamplingBatchSize"),
        "is for training; a generate-only job takes every prompt",
        "rollout.overSamplingBatchSize",
        when=MODE == "Generate",
    ),
)
