"""The arguments of SGLang's engine: what the job decides, and `rollout.engineArgs`, checked before anything starts."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import engine_gpus, samples_under_way, shares_gpus
from rljob_api.v1alpha1.job import RLJobSpec

FIELD = "spec.rollout.engineArgs"
LOADER = "rljob_trainer.inference.sglang.served.report_served"
"""Import path of the function by which an engine's own process tells what it serves."""
DECIDED = {
    "model_path": "spec.model.path",
    "tokenizer_path": "spec.model.tokenizerPath",
    "tp_size": "spec.rollout.gpusPerEngine",
    "dtype": "spec.model.dtype",
    "trust_remote_code": "spec.model.trustRemoteCode",
    "load_format": "nothing: weights come from the trainer",
    "skip_tokenizer_init": "nothing: stop strings need the tokenizer",
    "random_seed": "spec.seed",
    "server_args": "the arguments themselves",
    "nnodes": "spec.rollout.gpusPerEngine",
    "dp_size": "spec.rollout.replicas",
}
"""Arguments that follow from the rest of the job, and the field that says them."""
COLOCATED_MEMORY = 0.6
GRAPHS, MOST_GRAPHS = 256, 1024
"""Sequences of the largest CUDA graph: SGLang's own choice for a GPU of 80 GB, and the most that we ask for."""
SLACK_TOKENS = 8
"""SGLang keeps a few positions of the context to itself."""


def check_arguments(given: Mapping[str, Any], known: Collection[str] | None) -> None:
    """Raises UserError for an argument that the job decides itself, or that is not in `known` (None: not checked)."""
    for name in given:
        if name in DECIDED:
            raise UserError(f"{FIELD}.{name}: is decided by {DECIDED[name]}; remove it")
        if known is not None and name not in known:
            close = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1, cutoff=0.5)
            raise UserError(
                f"{FIELD}.{name}: SGLang has no such argument",
                hint=f"did you mean {close[0]}?" if close else "see sglang's ServerArgs",
            )


def known_arguments() -> frozenset[str] | None:
    """Names of ServerArgs' fields; None where SGLang is not installed."""
    try:
        from sglang.srt.server_args import ServerArgs
    except ImportError:
        return None
    return frozenset(field.name for field in dataclasses.fields(ServerArgs))


def graph_arguments(spec: RLJobSpec, known: Collection[str] | None) -> dict[str, Any]:
    """CUDA graphs as large as the job needs them: beyond the largest a step of a small model takes three times as long
    for each sequence. What the user says of graphs is left alone."""
    name, under_way = "cuda_graph_max_bs_decode", samples_under_way(spec)
    asked = any("cuda_graph" in given for given in spec.rollout.engine_args)
    if under_way <= GRAPHS or asked or name not in (known or ()):
        return {}
    return {name: min(under_way, MOST_GRAPHS)}


def server_arguments(
    spec: RLJobSpec,
    model_folder: str,
    max_context_length: int,
    engine_index: int,
    known: Collection[str] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `sglang.srt.entrypoints.engine.Engine`; the user's own win over our defaults.

    `model_folder` holds config and tokenizer alone: the engine starts with weights of no meaning, and serves only
    after the trainer's have arrived. `known`: see `known_arguments`.
    """
    arguments: dict[str, Any] = {
        "model_path": model_folder,
        "load_format": "dummy",
        "tp_size": max(1, engine_gpus(spec)),
        "dtype": spec.model.dtype,
        "trust_remote_code": spec.model.trust_remote_code,
        "context_length": max_context_length + SLACK_TOKENS,
        "random_seed": spec.seed + engine_index,
        "custom_weight_loader": [LOADER],
        "log_level": "warning",
    }
    if shares_gpus(spec):
        arguments |= {"enable_memory_saver": True, "mem_fraction_static": COLOCATED_MEMORY}
    arguments |= graph_arguments(spec, known)
    if spec.deterministic:
        arguments |= {"enable_deterministic_inference": True}
    given = dict(spec.rollout.engine_args)
    loaders = given.pop("custom_weight_loader", None) or []
    arguments["custom_weight_loader"] += [loaders] if isinstance(loaders, str) else list(loaders)
    return arguments | given
