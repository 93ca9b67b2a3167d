"""The Job that fills the claim before anything else runs: the user's preparation, then the index.

The preparation has the trainer's image, with all that reads parquet and the Hub; the index is built in the
retriever's, which has faiss. Both do nothing where their work is done and go on where it was left, so a pod that is
lost costs little. The name holds a key of the content: another content is another Job.
"""

import hashlib
import json

from rljob_api.contract import environment_variables as variables
from rljob_api.contract import names
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.job_document import MANIFEST_KEY, spelt_out
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_operator.kube.objects import JOB, Obj
from rljob_operator.resources import environment, pod, storage
from rljob_operator.resources.context import CONFIG_DIR, Context

REQUESTS = {"cpu": "250m", "memory": "512Mi"}
"""What a step asks for when the user says nothing; the index asks as the retriever's pods do."""
TRIES = 6
"""Failed pods until the RLJob fails; Kubernetes waits 10 s, 20 s, 40 s … between them."""
KEPT_SECONDS = 3600
"""How long the ended Job and its pods' logs are there; its end is in the status."""


def key(context: Context) -> str:
    """Of what the Job makes; the same content is not made twice."""
    # Spelt out: a field that is new and not used makes nothing anew.
    prepare = context.spec.data.prepare
    retriever = spelt_out(context.spec.retriever) if context.spec.retriever else {}
    made = {
        "prepare": spelt_out(prepare) if prepare else None,
        "corpus": retriever.get("corpus"),
        "index": retriever.get("index"),
        "encoder": retriever.get("encoder"),
        "code": spelt_out(context.spec.code),
        "claim": storage.claim_name(context),
        "directory": context.directory,
    }
    if name := storage.retriever_claim_name(context):
        made["retrieverClaim"] = name
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]


def job(context: Context) -> Obj | None:
    """The Job; None when there is nothing to prepare, or no retriever to prepare for: the driver then does it."""
    steps = _steps(context)
    retriever = context.spec.retriever
    if retriever is None or not steps:
        return None
    template = pod.template(context, _group(context, retriever, steps))
    template["spec"]["restartPolicy"] = "Never"
    body = context.child(JOB, names.prepare(context.name, key(context)), "prepare")
    body["spec"] = {
        "backoffLimit": TRIES - 1,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [int(ExitCode.USER_ERROR)]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }
    return body


def _steps(context: Context) -> list[Obj]:
    retriever = context.spec.retriever
    steps: list[Obj] = []
    if context.spec.data.prepare:
        image = context.spec.images.trainer or context.settings.trainer_image
        steps.append(_step(context, "prepare", image, "rljob_trainer.prepare", {"requests": dict(REQUESTS)}))
    if retriever and retriever.index.build == "IfMissing":
        image = context.spec.images.retriever or context.settings.retriever_image
        resources = pod.resources(retriever.pod, REQUESTS)
        steps.append(_step(context, "build-index", image, "rljob_trainer.retriever.build", resources))
    return steps


def _step(context: Context, name: str, image: str, module: str, resources: Obj) -> Obj:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": pod.pull_policy(context),
        "command": ["python", "-m", module, "--job", f"{CONFIG_DIR}/{MANIFEST_KEY}", "--dir", context.directory],
        "env": _env(context),
        "resources": resources,
        "securityContext": pod.SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": pod.mounts(context, "prepare"),
    }


def _env(context: Context) -> list[environment.Env]:
    retriever = context.spec.retriever
    return environment.merged(
        environment.job(context),
        environment.hub_token(context),
        [
            environment.value("OMP_NUM_THREADS", 1),
            environment.value(variables.PROGRESS_CONFIG_MAP, names.progress(context.name)),
        ],
        environment.of_user(retriever.pod) if retriever else [],
    )


def _group(context: Context, retriever: RetrieverSpec, steps: list[Obj]) -> pod.GroupPods:
    last = steps[-1]
    return pod.GroupPods(
        name="prepare",
        container=last["name"],
        image=last["image"],
        env=last["env"],
        # A patch is of the retriever's own container.
        overrides=retriever.pod.model_copy(update={"pod_template_patch": None}),
        requests=REQUESTS,
        command=last["command"],
        init=steps[:-1],
        token=True,  # the driver's, to report how far it is
    )
