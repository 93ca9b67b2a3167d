"""`spec.retriever.storage`: a claim of the retriever's own, which alone holds corpus and index."""

import json
from typing import Any

import pytest

from e2e.support.chaos import kill_retriever
from e2e.support.jobs import JOB_LABEL, Job, example, merge
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for
from e2e.tests.test_rljob_faults import SHORT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800), pytest.mark.usefixtures("installed_operator")]

NAME = "stored"
CORPUS, INDEX = "/rljob-retriever/wiki/corpus.jsonl", "/rljob-retriever/wiki/index.faiss"
# The quickstart's world, whose corpus then moves to the claim, as a user's own preparation would put it there.
_PREPARE = """
import os, shutil
from rljob_trainer.quickstart import world

def prepare(directory, *, corpus, **arguments):
    world.prepare(directory, **arguments)
    os.makedirs(os.path.dirname(corpus), exist_ok=True)
    shutil.move(os.path.join(directory, "world", "corpus.jsonl"), corpus)
"""
STORED = merge(
    SHORT,
    {
        "code": {"files": {"own_world.py": _PREPARE}},
        "data": {"prepare": {"function": "own_world:prepare", "args": {"corpus": CORPUS, "demonstrations": 100}}},
        "sft": None,
        "rollout": {"numRollout": 400},
        "lifecycle": {"terminationGracePeriodSeconds": 5},
        "retriever": {
            "corpus": CORPUS,
            "index": {"path": INDEX},
            "storage": {"size": "2Gi", "accessModes": ["ReadWriteOnce"]},
        },
    },
)
# In the retriever's pod: the files by their identity and time, the claim being mounted, and the corpus' last passage.
_LOOK = """
import json, os, sys
def of(path):
    found = os.stat(path)
    return [found.st_ino, found.st_mtime_ns, found.st_size]
with open(sys.argv[1], encoding="utf-8") as file:
    *_, last = file
mounted = os.path.ismount("/rljob-retriever")
print(json.dumps({"files": [of(path) for path in sys.argv[1:]], "mounted": mounted, "passage": json.loads(last)}))
"""
_ASK = """
import json, sys, urllib.request
body = json.dumps({"queries": [sys.argv[2]], "topk": 1}).encode()
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""
_HAS = "import json, os, sys; print(json.dumps([path for path in sys.argv[1:] if os.path.exists(path)]))"


def look(job: Job) -> dict[str, Any]:
    """What the retriever's pod sees of its claim."""
    return _exec(job, "retriever", _LOOK, CORPUS, INDEX)


def ask(job: Job, query: str) -> str:
    """The passage that the retriever gives the driver's pod for it."""
    found = _exec(job, "head", _ASK, f"http://{job.name}-retriever:8000/retrieve", query)["result"]
    contents: str = found[0][0]["contents"]
    return contents


def _exec(job: Job, group: str, program: str, *arguments: str) -> Any:
    (pod,) = [pod for pod in job.pods(group) if "deletionTimestamp" not in pod["metadata"]]
    return json.loads(job.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", program, *arguments))


def _builds(job: Job) -> set[str]:
    """Jobs that prepare and their pods, by their UIDs."""
    of_job = job.kubectl.items("jobs", "-l", f"{JOB_LABEL}={job.name},app.kubernetes.io/component=prepare")
    return {item["metadata"]["uid"] for item in [*of_job, *job.pods("prepare")]}


def test_the_index_lies_on_the_retrievers_own_claim_and_is_built_once(kubectl: Kubectl) -> None:
    kubectl.apply(example("quickstart.yaml", NAME, STORED))
    job = Job(kubectl, NAME)

    # The claim is the job's, of the size asked for, and beside that of the job's directory.
    claim = f"pvc/{NAME}-retriever"
    wait_for("the claim", lambda: kubectl.names(claim), seconds=30)
    made = wait_for("it bound", lambda: (it := kubectl.get(claim))["status"]["phase"] == "Bound" and it, seconds=30)
    assert made["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert made["spec"]["accessModes"] == ["ReadWriteOnce"]
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("RLJob", kubectl.get("rljob", NAME)["metadata"]["uid"])
    data = kubectl.get(f"pvc/{NAME}-data")
    assert data["spec"]["volumeName"] != made["spec"]["volumeName"]

    # Corpus and index are there and nowhere else; the retriever answers from them, and the job trains.
    job.wait_step(2, stage="RL", seconds=240)
    assert job.condition("RetrieverReady")["status"] == "True"
    before, builds = look(job), _builds(job)
    assert before["mounted"]
    world = f"/rljob/{kubectl.namespace}/{NAME}/world"
    elsewhere = ("/rljob-retriever", "/rljob/wiki", f"{world}/corpus.jsonl", f"{world}/train.jsonl")
    assert _exec(job, "head", _HAS, *elsewhere) == [f"{world}/train.jsonl"]
    title = before["passage"]["contents"].partition("\n")[0]
    assert ask(job, title) == before["passage"]["contents"]
    assert len(builds) == 2, "a Job and its pod"

    # Another pod finds them as they were, and the job goes on.
    kill_retriever(job)
    step = job.status()["step"]
    assert ask(job, title) == before["passage"]["contents"]
    job.wait_step(step + 2, stage="RL", seconds=120)
    assert job.status()["attempt"] == 1
    assert look(job) == before
    assert _builds(job) == builds

    kubectl("delete", "rljob", NAME, "--timeout=120s", seconds=130)
    wait_for("the claim gone with its job", lambda: not kubectl.names(claim), seconds=60)


def test_a_claim_that_no_path_leads_to_is_refused(kubectl: Kubectl) -> None:
    spec = merge(STORED, {"retriever": {"corpus": "world/corpus.jsonl", "index": {"path": "world/index.faiss"}}})
    kubectl.apply(example("quickstart.yaml", NAME, spec))
    job = Job(kubectl, NAME)
    said = wait_for("a verdict", lambda: job.condition("Accepted"), seconds=30)
    assert (said["status"], said["reason"]) == ("False", "InvalidSpec")
    assert "spec.retriever.storage: nothing is read from it; give paths below /rljob-retriever" in said["message"]
    assert not job.leftovers(), "nothing is made for it"
