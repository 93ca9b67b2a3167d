"""Environment variables by which the operator tells a job's containers where they are and what they may use.

Names that begin with `RLJOB_` are the operator's: a user cannot set them.
"""

# In every container
NAME = "RLJOB_NAME"
"""Name of the RLJob. A process that has it runs in a pod of a job."""
NAMESPACE = "RLJOB_NAMESPACE"
UID = "RLJOB_UID"
"""UID of the RLJob."""
DIR = "RLJOB_DIR"
"""The job's directory."""

# In head, trainer and rollout
ATTEMPT = "RLJOB_ATTEMPT"
"""Number of the attempt, from 1."""
ROLE = "RLJOB_ROLE"
"""head, trainer or rollout."""
POD_NAME = "RLJOB_POD_NAME"
POD_LOG = "RLJOB_POD_LOG"
"""File that a process copies its output to, for `kubectl logs`."""
MODEL_DIR = "RLJOB_MODEL_DIR"
"""Where the claim of `model.source` is mounted; set when there is one."""
RETRIEVER_URL = "RLJOB_RETRIEVER_URL"
"""Address of the retriever; set when there is one. `rljob run` sets it for the driver, too."""

# In the head: the driver
CONTROL_CONFIG_MAP = "RLJOB_CONTROL_CONFIGMAP"
"""ConfigMap that the operator's requests are in."""
LEASE = "RLJOB_LEASE"
"""Lease that the driver has to hold."""
INCARNATION_ID = "RLJOB_INCARNATION_ID"
"""UID of the head pod: with the attempt's number the name of the incarnation."""
SEARCH_KEY = "SERPER_API_KEY"
"""Key of `rollout.generate.search.google`, unless its `env` names another variable."""
HUB_PUSH_TOKEN = "HF_PUSH_TOKEN"
"""Token of `checkpoint.hub`, unless its `env` names another variable."""

# In the head and in the Job that prepares
PROGRESS_CONFIG_MAP = "RLJOB_PROGRESS_CONFIGMAP"
"""ConfigMap to report the progress into."""


def tool_token(index: int) -> str:
    """Token of `rollout.generate.tools.functions[index]`, unless its `env` names another variable."""
    return f"RLJOB_TOOL_{index}_TOKEN"


def reward_token(index: int) -> str:
    """Token of `reward.functions[index]`, unless its `env` names another variable."""
    return f"RLJOB_REWARD_{index}_TOKEN"
