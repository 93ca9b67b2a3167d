"""Built-in rewards by name: from an entry of the catalogue to what scores a sample."""

from rljob_api.catalogue.rewards import REWARDS, VERIFIERS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardFunction, RewardSpec

from rljob_trainer.hooks import load_function, load_hook
from rljob_trainer.rewards.arguments import Arguments, Scorer
from rljob_trainer.rewards.pool import WorkerFunction

VERIFIER_MEMORY = 2 << 30
"""Bytes that verifying one sample may take beyond what its process holds."""


def build(function: RewardFunction, field: str) -> Scorer:
    """The scorer of a built-in reward that runs in the driver. docs/rewards.md has the definitions.

    Raises UserError for a name that is not one, or arguments it does not have.
    """
    if function.name not in REWARDS:
        raise UserError(f"{field}.name: there is no built-in reward {function.name!r}")
    args = Arguments(function.args, f"{field}.args", function.name)
    scorer: Scorer = load_function(REWARDS[function.name].function, f"{field}.name")(args)
    args.done()
    return scorer


def verifier(function: RewardFunction, field: str) -> WorkerFunction:
    """A built-in reward that runs in a worker. Raises UserError for arguments: there are none."""
    Arguments(function.args, f"{field}.args", function.name).done()
    entry = REWARDS[function.name]
    return WorkerFunction(entry.function, f"{field}.name", {}, memory=VERIFIER_MEMORY, text_only=True)


def check_functions(spec: RewardSpec) -> None:
    """Raises UserError for a function of one's own that is not there or cannot be called as it will be, and for
    arguments that a built-in one does not have. Nothing is started; `remote` is checked where it is asked."""
    for place, function in enumerate(spec.functions):
        field = f"spec.reward.functions[{place}]"
        if function.name in VERIFIERS:
            verifier(function, field)
        elif function.name in REWARDS:
            build(function, field)
        elif function.name == "custom" and function.function is not None:
            path, args = function.function, function.args
            load_hook(path, f"{field}.function", args, "def f(sample, **args)", 1, may_be_async=True)
