"""Which cluster the tests run against: one that they bring up themselves, or one that the user names and confirms.

$KUBECONFIG is never it. Whoever uses Kubernetes has it set, and the tests apply definitions and delete namespaces.
"""

import os
from collections.abc import Mapping
from pathlib import Path

NO_CLUSTER = Path(__file__).resolve().parent / "no-cluster.kubeconfig.yaml"
"""A kubeconfig that leads nowhere."""
GIVEN = "RLJOB_E2E_KUBECONFIG"
CONFIRMED = "RLJOB_E2E_YES"


class NotConfirmedError(Exception):
    """A cluster is named, and nobody has said that the tests may change it."""


def given(env: Mapping[str, str] | None = None) -> str | None:
    """The kubeconfig that the user names and confirms; None when none is named. Raises NotConfirmedError."""
    env = os.environ if env is None else env
    path = env.get(GIVEN)
    if not path:
        return None
    if env.get(CONFIRMED) != "1":
        raise NotConfirmedError(
            f"{GIVEN} is {path}: the tests apply RLJob's definitions to that cluster and install an operator on it; "
            f"set {CONFIRMED}=1 to allow it, or run `make e2e`, which asks"
        )
    if not Path(path).is_file():
        raise NotConfirmedError(f"{GIVEN} is {path}: there is no such file")
    return path


def shut_out() -> None:
    """From here on, this process and those that it starts find no cluster by themselves."""
    os.environ["KUBECONFIG"] = str(NO_CLUSTER)
