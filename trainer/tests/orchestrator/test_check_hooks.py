"""The signatures of a user's functions are checked, and faults of their modules are reported, before anything
starts."""

from collections.abc import Iterator
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.orchestrator.setup import check_hooks
from rljob_trainer.rollout.dynamic_sampling import make_filter

MINE = """
NUMBER = 3

async def two_tries(args, sample, sampling, engine): ...
async def no_engine(args, sample, sampling): ...
def brief(sample, *, words): return 1.0
async def asks(sample): return 1.0
def nothing_of_it(): return 1.0
def keep(samples): return True
def pair(one, other): return True
def forgets(samples): samples
def divides(samples): return 1 / 0
async def later(samples): return True
def advantages(inputs): return inputs.rewards
"""


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "mine_to_check.py").write_text(MINE)
    (folder / "at_import.py").write_text('import sys\n\nLABELS = {}["labels"]\n')
    (folder / "a_script.py").write_text("import sys\n\nsys.exit(0)\n")
    (folder / "needy.py").write_text("\nimport nothing_like_it\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def job(**spec: Any) -> RLJob:
    reward = {"functions": [{"name": "em"}]}
    whole = {"model": {"path": "m"}, "data": {"train": {"path": "d"}}, "reward": reward, **spec}
    head = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "j"}}
    return RLJob.model_validate({**head, "spec": whole})


def own(function: str, **more: Any) -> dict[str, Any]:
    return {"reward": {"functions": [{"name": "custom", "function": function, **more}]}}


def generate(function: str) -> dict[str, Any]:
    return {"rollout": {"generate": {"type": "custom", "function": function}}}


def test_functions_that_can_be_called_pass() -> None:
    check_hooks(job(**generate("mine_to_check:two_tries"), **own("mine_to_check:brief", args={"words": 3})))
    check_hooks(job(**own("mine_to_check:asks"), rollout={"dynamicFilter": "mine_to_check:keep"}))
    check_hooks(job(rollout={"dynamicFilter": "nonzero_std"}))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (generate("mine_to_check:no_engine"), r"generate\.function: .* cannot be called with four arguments"),
        (generate("mine_to_check:keep"), r"generate\.function: .*not a coroutine function"),
        (own("mine_to_check:brief"), r"functions\[0\]\.function: .*missing a required keyword-only argument: 'words'"),
        (own("mine_to_check:brief", args={"wrods": 3}), r"functions\[0\]\.function: .*, wrods=…: missing .*'words'"),
        (own("mine_to_check:nothing_of_it"), r"cannot be called with 1 positional argument"),
        (
            {"rollout": {"dynamicFilter": "mine_to_check:pair"}},
            r"dynamicFilter: .*missing a required argument: 'other'",
        ),
        ({"rollout": {"dynamicFilter": "mine_to_check:later"}}, r"dynamicFilter: .*is a coroutine function"),
        (
            {"reward": {"functions": [{"name": "em"}, {"name": "em", "args": {"formatscore": 0.2}}]}},
            r"functions\[1\]\.args: 'em' has no argument 'formatscore'\n.*it takes formatScore",
        ),
        ({"reward": {"functions": [{"name": "math", "args": {"x": 1}}]}}, r"no argument 'x'\n.*it takes none"),
        ({"reward": {"functions": [{"name": "length"}]}}, r"args\.maxLength is required"),
        (own("mine_to_check.py:brief"), r"no module 'mine_to_check.py'.*\n.*named without .py: mine_to_check:brief"),
        (own("mine_to_check:breif"), r"has no 'breif'\n.*did you mean mine_to_check:brief"),
        (own("mine_to_check:NUMBER"), "'mine_to_check:NUMBER' is of type int, not a function"),
        (own("at_import:f"), r"importing 'at_import' failed: KeyError: 'labels' \(at_import.py:3\)"),
        (own("a_script:f"), r"importing 'a_script' failed: SystemExit: 0 \(a_script.py:3\)"),
        (own("needy:f"), r"it needs 'nothing_like_it', not installed \(needy.py:2\)"),
    ],
)
def test_each_mistake_is_named_by_its_field(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_hooks(job(**spec))
    assert str(caught.value).startswith("spec.")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forgets", r"mine_to_check:forgets returned None, neither true nor false \(mine_to_check.py:11\)"),
        ("divides", r"mine_to_check:divides raised ZeroDivisionError: division by zero \(mine_to_check.py:12\)"),
    ],
)
def test_a_filter_that_says_nothing_ends_the_job(name: str, said: str) -> None:
    keep = make_filter(job(rollout={"dynamicFilter": f"mine_to_check:{name}"}).spec.rollout)
    assert keep is not None
    with pytest.raises(UserError, match=said):
        keep([])
