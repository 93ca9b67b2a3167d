"""Small tokenizers with chat templates in the manner of well-known families: how they close a turn, show results of
tools, and treat what the assistant wrote."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
MARKS = [f"<|mark{number}|>" for number in range(8)]
"""Special tokens that no template writes: they stand for what the assistant wrote."""

_TOOLS = "{% if tools %}{BEGIN}Tools:{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{END}{% endif %}"
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    + _TOOLS.replace("{BEGIN}", "<|im_start|>system\n").replace("{END}", "<|im_end|>\n")
    + "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>{{ '\n' }}{% endif %}"
    "{% else %}<|im_start|>{{ m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}"
    "{% endfor %}<|im_end|>{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}"
    + _TOOLS.replace("{BEGIN}", "<|start_header_id|>system<|end_header_id|>\n\n").replace("{END}", "<|eot_id|>")
    + "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>"
    "{{ '\n\n' }}{{ m.content | tojson if m.role == 'tool' else m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}"
    + _TOOLS.replace("{BEGIN}", "[AVAILABLE_TOOLS]").replace("{END}", "[/AVAILABLE_TOOLS]")
    + "{% set ns = namespace(turn=0) %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{% if (m.tool_call_id or '') | length != 9 %}"
    "{{ raise_exception('the id of a call has nine characters') }}{% endif %}"
    "[TOOL_RESULTS] {{ {'content': m.content, 'call_id': m.tool_call_id} | tojson }}[/TOOL_RESULTS]"
    "{% else %}"
    "{% if m.role == 'user' and loop.index0 and messages[loop.index0 - 1].role == 'user' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
    "{% endif %}{% endfor %}"
)
MODEL_TURNS = (
    "{{ bos_token }}"
    + _TOOLS.replace("{BEGIN}", "<start_of_turn>user\n").replace("{END}", "<end_of_turn>\n")
    + "{% for m in messages %}<start_of_turn>{{ {'assistant': 'model', 'tool': 'user'}.get(m.role, m.role) }}{{ '\n' }}"
    "{{ '<tool_response>' + m.content + '</tool_response>' if m.role == 'tool' else m.content | trim }}"
    "<end_of_turn>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model{{ '\n' }}{% endif %}"
)
FORGETS_THINKING = CHATML.replace(
    "{% for m in messages %}",
    "{% set ns = namespace(query=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.query = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}",
).replace("m.content }}{% for call", "(m.content if loop.index0 > ns.query or m.role != 'assistant' "
          "else m.content.split('</think>')[-1].lstrip('\n')) }}{% for call")  # fmt: skip
OPENS_THINKING = (
    "{{ bos_token }}"
    + _TOOLS.replace("{BEGIN}", "").replace("{END}", "")
    + "{% for m in messages %}{% if m.role == 'tool' %}<|tool_output|>{{ m.content }}<|/tool_output|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{{ '\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A tokenizer with its template, and what is known of how the template treats the assistant's turns."""

    name: str
    tokenizer: Any
    eos: tuple[str, ...]
    """Tokens that end a generation, the one that closes a turn last."""
    lead: str = ""
    """What the template writes before the assistant's content and leaves to the model in a rollout."""
    opens: str = ""
    """What the template writes for the model in a rollout and not before the assistant's content."""
    after: str = ""
    """What the template writes after the token that closes a turn."""

    @property
    def eos_ids(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(token) for token in reversed(self.eos)]

    def ids(self, messages: Sequence[Message], *, generation: bool = False) -> list[int]:
        """The template's own rendering."""
        return list(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, add_generation_prompt=generation, return_dict=False
            )
        )

    def said(self, messages: Sequence[Message], content: str) -> list[int]:
        """What a model draws that answers `messages` by `content`, in the tokens that a tokenizer would take."""
        text = self.lead + content + self.eos[-1]
        if self.opens:  # a tokenizer may join it with what the model writes first
            return self.goes_on(text)
        before = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        start = self.tokenizer.encode(before, add_special_tokens=False)
        whole = self.tokenizer.encode(before + text, add_special_tokens=False)
        assert whole[: len(start)] == start
        return list(whole[len(start) :])

    def piecemeal(self, content: str) -> list[int]:
        """The same as text, in tokens that no tokenizer would take: a character each."""
        return [*(i for character in self.lead + content for i in self.goes_on(character)), self.eos_ids[0]]

    def goes_on(self, text: str) -> list[int]:
        """The ids of text in the middle of other text."""
        encode, before = self.tokenizer.encode, "\ue0a4"
        return list(encode(before + text, add_special_tokens=False)[len(encode(before, add_special_tokens=False)) :])


CORPUS = [
    "What is two plus three? I add the numbers with a tool, then I say what it is.",
    '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
    "<think>\nLet me think about it.\n</think>\n\nIt is five.",
    "<search> who wrote it </search> <answer>the author</answer> Doc 1(Title: T) about it",
] * 4


def _bytes(special: Sequence[str]) -> Tokenizer:
    """Byte-level BPE with Qwen's way of splitting."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    split = rf"{words}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*special, *MARKS)])
    return made


def _pieces(special: Sequence[str], *, prefix: bool) -> Tokenizer:
    """Sentencepiece's BPE: `▁` for a space, single bytes for what is unknown. `prefix`: puts a space before any text,
    also after each special token, as Llama 2's and Mistral's do."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    lines = [line for text in CORPUS for line in text.splitlines()]  # a line break is a token of its own
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, show_progress=False))  # type: ignore[call-arg]

    model = json.loads(trained.to_str())["model"]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256}
    for piece in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(piece, len(vocab))
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*special, *MARKS)])
    return made


def _family(name: str, backend: Tokenizer, template: str, eos: Sequence[str], **known: Any) -> Family:
    bos = {"bos_token": "<s>"} if backend.token_to_id("<s>") is not None else {}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos[0], **bos)
    made.clean_up_tokenization_spaces = False
    made.chat_template = template
    return Family(name, made, tuple(eos), **known)


def _chatml() -> Family:
    return _family("chatml", _bytes(["<|im_start|>", "<|im_end|>"]), CHATML, ["<|im_end|>"], after="\n")


def _headers() -> Family:
    special = ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _family("headers", _bytes(special), HEADERS, ["<|eot_id|>"])


def _instructions() -> Family:
    special = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    return _family("instructions", _pieces(special, prefix=False), INSTRUCTIONS, ["</s>"], lead=" ")


def _instructions_as_text() -> Family:
    """The instructions' marks are text, and a space comes before each text."""
    return _family("instructions as text", _pieces(["<s>", "</s>"], prefix=True), INSTRUCTIONS, ["</s>"], lead=" ")


def _model_turns() -> Family:
    special = ["<s>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    backend = _pieces(special, prefix=False)
    return _family("model turns", backend, MODEL_TURNS, ["<eos>", "<end_of_turn>"], after="\n")


def _forgets_thinking() -> Family:
    backend = _bytes(["<|im_start|>", "<|im_end|>"])
    return _family("forgets thinking", backend, FORGETS_THINKING, ["<|im_end|>"], after="\n")


def _opens_thinking() -> Family:
    backend = _bytes(["<s>", "<|user|>", "<|assistant|>", "<|tool_output|>", "<|/tool_output|>", "<|end|>"])
    return _family("opens thinking", backend, OPENS_THINKING, ["<|end|>"], opens="<think>\n")


_MAKERS: dict[str, Callable[[], Family]] = {
    "chatml": _chatml,
    "headers": _headers,
    "instructions": _instructions,
    "instructions as text": _instructions_as_text,
    "model turns": _model_turns,
    "forgets thinking": _forgets_thinking,
    "opens thinking": _opens_thinking,
}
FAMILIES = list(_MAKERS)
VERBATIM = [name for name in FAMILIES if name != "opens thinking"]
"""Render what the assistant wrote as it was written, but for white space around it and earlier thinking."""


@cache
def family(name: str) -> Family:
    """The family of that name."""
    return _MAKERS[name]()
