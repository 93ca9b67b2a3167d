"""Whose layers Megatron's model is built of: TransformerEngine's where it can be imported, else megatron-core's own."""

from rljob_api.manifest.errors import UserError

TRANSFORMER_ENGINE, LOCAL = "transformer_engine", "local"
FIELD = "spec.trainer.megatronArgs.transformer_impl"


def implementation(requested: object, *, available: bool) -> str:
    """The value of Megatron's `transformer_impl`. requested: what `megatronArgs` says, None if nothing. available:
    whether TransformerEngine can be imported. Raises UserError for another value, or for one that is not there."""
    if requested is None:
        return TRANSFORMER_ENGINE if available else LOCAL
    if requested not in (TRANSFORMER_ENGINE, LOCAL):
        raise UserError(f"{FIELD}: {requested!r} is neither {TRANSFORMER_ENGINE!r} nor {LOCAL!r}")
    if requested == TRANSFORMER_ENGINE and not available:
        raise UserError(
            f"{FIELD}: {TRANSFORMER_ENGINE!r}, but TransformerEngine cannot be imported here",
            hint="use a trainer image with transformer-engine[pytorch], or leave it out for megatron-core's own layers",
        )
    return str(requested)
