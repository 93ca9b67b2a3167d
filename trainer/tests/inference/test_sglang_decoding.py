"""Texts of responses that end together."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.inference.sglang.decoding import Decoder, batch_decode
from rljob_trainer.models import load_tokenizer
from rljob_trainer.quickstart.tokenizer import write_tokenizer
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from .conftest import TextTokenizer

SPEC = RLJob.model_validate(
    {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"},
     "spec": {"model": {"tokenizerPath": "tokenizer", "randomInit": {"hiddenSize": 32, "intermediateSize": 48,
     "numHiddenLayers": 1}}, "data": {"train": {"path": "x.jsonl"}}}}
).spec  # fmt: skip


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("decoding")
    write_tokenizer(folder / "tokenizer", ("home",), ("Zafo", "Miru"))
    return load_tokenizer(SPEC.model, folder)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, as byte-level BPE falls back to: most rows end within a character."""
    vocabulary = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<|im_end|>"])
    made.clean_up_tokenization_spaces = False
    return made


@pytest.mark.parametrize("name", ["quickstart", "bytes_tokenizer"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_a_batch_reads_as_its_rows_do(name: str, data: st.DataObject, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = st.integers(0, len(tokenizer) - 1)
    rows = data.draw(st.lists(st.lists(ids, min_size=1, max_size=40), max_size=5))
    texts = batch_decode(tokenizer)(rows)
    assert texts == [tokenizer.decode(row, skip_special_tokens=False) for row in rows]


def test_a_tokenizer_with_a_way_of_its_own_is_asked_itself(bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *arguments: Any, **options: Any) -> str:
            return super()._decode(*arguments, **options).upper()

    shouting = Shouting(tokenizer_object=bytes_tokenizer.backend_tokenizer)
    shouting.clean_up_tokenization_spaces = False
    row = bytes_tokenizer.convert_tokens_to_ids(["a", "b"])
    assert batch_decode(shouting)([row]) == ["AB"]


class Picky(TextTokenizer):
    """Token 3 cannot be read."""

    def __init__(self) -> None:
        super().__init__(["<pad>", "<eos>", "a", "b"])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        if 3 in token_ids:
            raise ValueError("token 3")
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


async def test_those_that_end_in_one_turn_of_the_loop_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(Picky())
    batches: list[int] = []
    inner = decoder._decode
    monkeypatch.setattr(decoder, "_decode", lambda rows: (batches.append(len(rows)), inner(rows))[1])
    ended = asyncio.Event()

    async def sample(ids: list[int]) -> str:
        await ended.wait()
        return await decoder.text(ids)

    tasks = [asyncio.create_task(sample([2] * (number + 1))) for number in range(20)]
    await asyncio.sleep(0)
    ended.set()
    assert await asyncio.gather(*tasks) == ["a" * (number + 1) for number in range(20)]
    assert batches == [20]
    assert await decoder.text([2, 2]) == "aa"
    assert await decoder.text([]) == ""
    assert batches == [20, 1]


async def test_a_cancelled_sample_takes_no_other_with_it() -> None:
    decoder = Decoder(Picky())
    first, second = (asyncio.create_task(decoder.text([2])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_error_reaches_all_who_wait_and_nobody_after() -> None:
    decoder = Decoder(Picky())
    results = await asyncio.gather(decoder.text([2]), decoder.text([3]), return_exceptions=True)
    assert [str(error) for error in results] == ["token 3", "token 3"]
    assert await decoder.text([2]) == "a"
