"""Which text the loss is taken on: exact under any template, or refused."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_trainer.data.chat import ChatTemplate, TurnsNotFoundError
from rljob_trainer.data.demonstrations import chat_segments

_spec = importlib.util.spec_from_file_location("chat_templates", Path(__file__).with_name("chat_templates.py"))
assert _spec is not None
assert _spec.loader is not None
templates: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(templates)

AWKWARD = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\n\n",
        "a",
        " b ",
        "42.",
        "<think>\nhm\n</think>\n\n",
        "<think>",
        "</think>",
        "user\n",
        "assistant",
        "<|im_end|>",
        "<|A|>",
        "é",
        "[INST]",
        "{{ x }}",
    ]
)
CONTENT = st.lists(AWKWARD, min_size=1, max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """A system message or none, then user and assistant in turns."""
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": role, "content": draw(CONTENT)} for role in ("user", "assistant")]
    return messages


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"}, tuple(templates.SPECIAL))


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


@pytest.mark.parametrize("name", templates.TEMPLATES)
@settings(max_examples=150, deadline=None)
@given(messages=conversations())
def test_turns_found_by_rendering_are_those_marked_by_hand(name: str, messages: list[dict[str, str]]) -> None:
    source = templates.TEMPLATES[name]
    try:
        found = template(templates.plain(source)).assistant_spans(messages)
    except TurnsNotFoundError:
        return  # refused, loudly; how seldom is the next test's business
    text, spans = template(templates.marked(source)).assistant_spans(messages)
    assert found[0] == text
    assert [span for span in found[1] if span[0] < span[1]] == spans


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_ordinary_conversations_are_never_refused(name: str) -> None:
    ordinary = [
        chat("What is 2 + 2?", "It is 4."),
        chat("Hi.", "Hello!", "And now?", "Bye.\n"),
        chat("One?", "<think>\nhm\n</think>\n\n1", "Two?", "<think>\nhm, hm\n</think>\n\n2"),
        [{"role": "system", "content": "Be brief."}, *chat("a", "b", "c", "d", "e", "f")],
    ]
    for messages in ordinary:
        text, spans = template(templates.plain(templates.TEMPLATES[name])).assistant_spans(messages)
        wanted = [m["content"] for m in messages if m["role"] == "assistant"]
        assert len(spans) == len(wanted)
        for (start, end), content in zip(spans, wanted, strict=True):
            assert content.split("</think>")[-1].strip() in text[start:end]
            assert "user" not in text[start:end]


def test_only_the_completion_is_trained_when_a_prompt_has_turns_of_the_assistant() -> None:
    messages = chat("a", "b", "c", "d")
    for source in (templates.plain(templates.CHATML), templates.marked(templates.CHATML)):
        segments = chat_segments(messages, 0, template(source), first=3)
        assert [text for text, train in segments if train] == ["d<|im_end|>"]


def test_what_cannot_be_exact_is_refused_with_the_row_and_a_way_out() -> None:
    forgetful = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        UserError, match=r"row 7: the chat template does not show exactly.*message 1.*0 times"
    ) as caught:
        chat_segments(chat("a", "b", "c", "d"), 7, template(forgetful))
    assert "{% generation %}" in str(caught.value.hint)
    drops = "{% for m in messages %}<|U|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    with pytest.raises(UserError, match="drops the <think> text of the last turn"):
        chat_segments(chat("a", "<think>b</think>c"), 0, template(drops))
    signs = "{% for m in messages %}{{ m.content }}{% if loop.last %}<|eot|>{% endif %}|{% endfor %}"
    with pytest.raises(UserError, match="where message 1 ends depends on what follows it"):
        chat_segments(chat("a", "b", "c", "d"), 0, template(signs))
    with pytest.raises(UserError, match="refuses the messages: roles"):
        chat_segments(chat("a", "b"), 0, template("{{ raise_exception('roles') }}"))
    with pytest.raises(UserError, match="no chat template"):
        chat_segments(chat("a", "b"), 0, None)
