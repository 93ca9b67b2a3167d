"""Each engine's entry in the catalogue says what its code does, and no engine is imported that is not used."""

import subprocess
import sys

import pytest
from rljob_api.catalogue.engines import ENGINES, Engine
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.inference.interface import InferenceEngine
from rljob_trainer.inference.sglang.engine import SglangEngine
from rljob_trainer.inference.torch_engine import TorchEngine
from rljob_trainer.workers.weight_sync import transport

CLASSES: dict[str, type[InferenceEngine]] = {"torch": TorchEngine, "sglang": SglangEngine}
METHODS = {"ipc": {"load_bucket"}, "nccl": {"join_group", "receive_bucket"}, "disk": {"load_folder"}}
UPDATES = {"begin_update", "finish_update"}


def job(**spec: dict[str, object]) -> RLJob:
    base = {"model": {"path": "m"}, "data": {"train": {"path": "p"}}}
    return RLJob.model_validate({"metadata": {"name": "a"}, "spec": base | spec})


@pytest.mark.parametrize("entry", ENGINES.values(), ids=list(ENGINES))
def test_an_engine_has_what_its_entry_says(entry: Engine) -> None:
    wanted = set().union(*(METHODS.get(way, set()) for way in entry.weights))
    wanted |= UPDATES if entry.updates_in_place else set()
    wanted |= {"sleep", "wake"} if entry.sleeps else set()
    optional = set().union(*METHODS.values()) | UPDATES | {"sleep", "wake"}
    assert {name for name in optional if name in vars(CLASSES[entry.name])} == wanted


@pytest.mark.parametrize("entry", ENGINES.values(), ids=list(ENGINES))
@pytest.mark.parametrize("placement", ["disaggregated", "colocated", "async"])
@pytest.mark.parametrize("weight_sync", ["auto", "disk"])
def test_weights_go_a_way_that_the_engine_takes(entry: Engine, placement: str, weight_sync: str) -> None:
    made = job(rollout={"engine": entry.name, "weightSync": weight_sync}, placement={"type": placement})
    way = transport(made.spec)
    assert way in entry.weights
    if entry.updates_in_place:
        assert way == ("disk" if weight_sync == "disk" else "ipc" if placement == "colocated" else "nccl")


@pytest.mark.parametrize("used", list(ENGINES))
def test_no_engine_is_imported_that_is_not_used(used: str) -> None:
    program = (
        "import pkgutil, sys, rljob_trainer.inference.registry; from rljob_api.catalogue.engines import ENGINES; "
        "folders = lambda: {e.name for e in ENGINES.values() if e.build.rsplit('.', 1)[0] in sys.modules}; "
        f"assert not folders(), folders(); pkgutil.resolve_name(ENGINES[{used!r}].build); "
        f"assert folders() == {{{used!r}}}, folders(); assert 'sglang' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
