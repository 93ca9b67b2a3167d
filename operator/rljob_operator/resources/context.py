"""What every builder needs: the job, and what the operator was installed with."""

from dataclasses import dataclass

from rljob_api.contract import labels
from rljob_api.v1alpha1.job import API_VERSION, KIND, RLJob, RLJobSpec

from rljob_operator.kube.objects import Kind, Obj
from rljob_operator.settings import Settings

MOUNT = "/rljob"
"""Where the claim is mounted in every pod."""
CONFIG_DIR = "/etc/rljob"
"""Where the manifest and the code are mounted."""
CODE_DIR = "/etc/rljob-code"
"""Where the user's modules are mounted; beside CONFIG_DIR, since mounts do not nest on a read-only root."""

MODEL_DIR = "/rljob-model"
"""Where the claim of `model.source` is mounted, if there is one."""


@dataclass(frozen=True)
class Context:
    """A job to render for."""

    job: RLJob
    namespace: str
    uid: str
    settings: Settings
    unread: tuple[str, ...] = ()
    """What this version of the operator cannot read of a job that has begun; it is left out."""

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.metadata.name

    @property
    def spec(self) -> RLJobSpec:
        """Spec of the job."""
        return self.job.spec

    @property
    def directory(self) -> str:
        """The job's directory in every pod."""
        return f"{MOUNT}/{self.spec.storage.sub_path or f'{self.namespace}/{self.name}'}"

    def child(self, kind: Kind, name: str, component: str = "job") -> Obj:
        """The bare child: identity, labels and owner. It goes when the RLJob goes."""
        return {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": labels.common(self.name, component),
                "ownerReferences": [
                    {
                        "apiVersion": API_VERSION,
                        "kind": KIND,
                        "name": self.name,
                        "uid": self.uid,
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
        }
