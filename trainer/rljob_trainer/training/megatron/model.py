"""The policy as a Megatron model: one pipeline stage of it, giving log-probabilities of chosen tokens."""

from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from rljob_trainer.export.architecture import Architecture
from rljob_trainer.training.megatron.attention import Packed
from rljob_trainer.training.megatron.collectives import sum_over
from rljob_trainer.training.megatron.layers import block_spec
from rljob_trainer.training.megatron.options import TRANSFORMER_ENGINE, implementation
from rljob_trainer.training.megatron.packing import Pack
from rljob_trainer.training.megatron.rope import angles, inverse_frequencies
from rljob_trainer.training.vocab import vocab_logprobs


class PolicyModel(GPTModel):
    """GPTModel whose last stage answers with ([N] log π, [N] entropy) instead of logits."""

    def __init__(self, config: TransformerConfig, arch: Architecture, hf_config: Any, vocab_rows: int) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(config),
            vocab_size=vocab_rows,
            max_sequence_length=0,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=arch.tied,
            position_embedding_type="none",  # Our attention rotates.
        )
        self.arch = arch
        frequencies, self.rope_factor = inverse_frequencies(hf_config)
        # Not a buffer: a model cast to bfloat16 would cast it too.
        self.frequencies = frequencies.to(torch.cuda.current_device())

    def forward(self, pack: Pack, temperature: float) -> Any:
        """A stage's forward pass over a pack on this device. Returns hidden states [T, 1, H] for the next stage, or, on
        the last, ([N], [N]) float32: log-probabilities of the pack's trained tokens, and entropies there (whose
        gradient is wanted or not: it costs nothing if not)."""
        packed = self._packed(pack)
        states = self.embedding(input_ids=pack.batch.input_ids, position_ids=None) if self.pre_process else None
        states = self.decoder(hidden_states=states, attention_mask=None, packed_seq_params=packed)
        if not self.post_process:
            return states
        return self._logprobs(states, pack, temperature)

    def logits(self, pack: Pack) -> Tensor:
        """[T, v]: this tensor rank's logits of all held tokens, for comparisons. One pipeline stage."""
        states = self.embedding(input_ids=pack.batch.input_ids, position_ids=None)
        states = self.decoder(hidden_states=states, attention_mask=None, packed_seq_params=self._packed(pack))
        logits: Tensor = self._whole(states) @ self._output_rows()[0].t()
        return logits.float()

    def _packed(self, pack: Pack) -> Packed:
        cos, sin = angles(pack.position_ids, self.frequencies, self.rope_factor)
        group = parallel_state.get_context_parallel_group() if self.config.context_parallel_size > 1 else None
        return Packed(attend=pack.attend, cos=cos, sin=sin, context_group=group)

    def _whole(self, states: Tensor) -> Tensor:
        """[T, H] of all this context rank's tokens; the gradient is summed over tensor ranks."""
        if self.config.sequence_parallel:
            states = tensor_parallel.gather_from_sequence_parallel_region(states, tensor_parallel_output_grad=True)
        else:
            states = tensor_parallel.copy_to_tensor_model_parallel_region(states)
        return states.flatten(0, 1)

    def _output_rows(self) -> tuple[Tensor, int]:
        """This rank's rows of the output matrix, less those that pad the vocabulary, and the number of the first."""
        weight: Tensor = self.shared_embedding_or_output_weight() if self.arch.tied else self.output_layer.weight
        first = parallel_state.get_tensor_model_parallel_rank() * weight.shape[0]
        return weight[: max(0, min(weight.shape[0], self.arch.vocab - first))], first

    def _logprobs(self, states: Tensor, pack: Pack, temperature: float) -> tuple[Tensor, Tensor]:
        chosen = self._whole(states).index_select(0, pack.chosen)
        rows, first = self._output_rows()
        ranks = self.config.tensor_model_parallel_size
        logprobs, entropy = vocab_logprobs(
            chosen,
            rows,
            pack.chosen_targets,
            temperature=temperature,
            first=first,
            group=parallel_state.get_tensor_model_parallel_group() if ranks > 1 else None,
        )
        if pack.chosen_rows is None:
            return logprobs, entropy
        # Each context rank has some of the tokens: all of them get all, and then take the same loss of them.
        both = logprobs.new_zeros(2, len(pack.batch.targets)).index_copy(
            1, pack.chosen_rows, torch.stack([logprobs, entropy])
        )
        both = sum_over(both, parallel_state.get_context_parallel_group())
        return both[0], both[1]


def vocab_rows(vocab: int, tensor: int) -> int:
    """Rows of embedding and output matrix: the vocabulary, rounded up so that tensor ranks hold equal parts."""
    return -(-vocab // tensor) * tensor


def build_policy(options: dict[str, Any], arch: Architecture, hf_config: Any, dtype: torch.dtype) -> PolicyModel:
    """This rank's stage and slice of the model on the GPU, weights not yet set.

    options: of `options.model_options` and `recompute_options`. Needs model parallelism to be initialised.
    """
    fused = dtype != torch.float32
    chosen = implementation(options.get("transformer_impl"), available=HAVE_TE)
    config = TransformerConfig(
        **{"bias_activation_fusion": fused, "bias_dropout_fusion": fused}
        | {"moe_grouped_gemm": chosen == TRANSFORMER_ENGINE}
        | options
        | {"transformer_impl": chosen},
        activation_func=nn.functional.silu,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
    )
    rows = vocab_rows(arch.vocab, config.tensor_model_parallel_size)
    model = PolicyModel(config, arch, hf_config, rows)
    model.to(device=torch.cuda.current_device(), dtype=dtype)
    return model
