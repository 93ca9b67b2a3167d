"""Whatever makes a sample, prompt and response are the chat template's own rendering of the conversation, token for
token; what a template writes otherwise than the model did differs in the model's own tokens and nowhere else."""

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rljob.types import Generation, Sample, SamplingParams
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.rollout.generate import ChatTurns, CustomGenerate, Limits, SearchGenerate, SingleTurnGenerate
from rljob_trainer.rollout.generate.build import JobGenerate, prompt_tokenizer
from rljob_trainer.rollout.generate.chat_turns import continuation_ids
from rljob_trainer.rollout.search_client import Document
from rljob_trainer.rollout.search_format import INVALID_ACTION, format_information

from .chat_families import FAMILIES, MARKS, VERBATIM, Family, Message, family
from .scripted import ScriptedEngine, check_sample, trained_ids

QUESTION: Message = {"role": "user", "content": "What is two plus three?"}
HOOKS = """
from rljob_trainer.rollout.generate import ChatTurns

async def add(arguments, sample):
    return str(arguments["a"] + arguments["b"])

async def echo(arguments, sample):
    return arguments["text"]

async def chat(args, sample, sampling, engine):
    turns = ChatTurns(engine.tokenizer)
    async with engine.open(sample.seed) as session:
        new_ids = sample.prompt_ids
        for words in [*args["words"], None]:
            turn = await session.generate(new_ids, sampling)
            sample.append_generation(turn)
            if words is None or turn.finish_reason != "stop":
                break
            bridge = turns.follow(turn, [{"role": "user", "content": words}])
            sample.append_observation(bridge.token_ids, bridge.text)
            new_ids = bridge.token_ids
    return sample
"""


@pytest.fixture(autouse=True)
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat_hooks.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "chat_hooks", raising=False)


@pytest.fixture(params=FAMILIES)
def every(request: pytest.FixtureRequest) -> Family:
    return family(request.param)


@pytest.fixture(params=VERBATIM)
def verbatim(request: pytest.FixtureRequest) -> Family:
    return family(request.param)


def call(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def result(number: int, name: str, content: str) -> Message:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": f"call{number:05d}"}


def rollout_of(**tools: Any) -> Any:
    functions = [{"name": name, "function": f"chat_hooks:{name}"} for name in ("add", "echo")]
    generate = {"type": "tools", "tools": {"functions": functions, **tools}}
    spec = {"model": {"path": "x"}, "rollout": {"generate": generate}}
    job = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": spec}
    return RLJob.model_validate(job).spec


def offering(which: Family) -> Family:
    """The family, whose template offers the tools of `rollout_of`."""
    tokenizer = prompt_tokenizer(which.tokenizer, rollout_of().rollout)
    return Family(which.name, tokenizer, which.eos, which.lead, which.opens, which.after)


async def with_tools(
    which: Family, turns: Sequence[Sequence[int]], limit: int = 5000, stop: tuple[str, ...] = ()
) -> tuple[Sample, ScriptedEngine]:
    engine = ScriptedEngine(turns, which.tokenizer, eos_ids=which.eos_ids)
    sample = Sample("", offering(which).ids([QUESTION], generation=True))
    generate = JobGenerate(rollout_of(), which.tokenizer)
    await generate.connect(None)
    await generate(sample, SamplingParams(max_new_tokens=limit, stop=stop), engine)
    return checked(sample, engine)


def checked(sample: Sample, engine: ScriptedEngine) -> tuple[Sample, ScriptedEngine]:
    """The mask covers exactly what the model drew, the tokens that end its turns among it."""
    check_sample(sample)
    assert trained_ids(sample) == [i for turn in engine.said for i in turn.token_ids]
    return sample, engine


def same_as_rendered(which: Family, sample: Sample, messages: Sequence[Message]) -> None:
    """All that is left of the template's rendering is what it writes after the end of the last turn."""
    whole, got = which.ids(messages), [*sample.prompt_ids, *sample.response_ids]
    assert got == whole[: len(got)]
    assert which.tokenizer.decode(whole[len(got) :]) == which.after


def outside(which: Family, sample: Sample) -> list[int]:
    """The sample's ids with a mark for what the model wrote in each turn; the tokens that end turns are left."""
    opens, ids = which.tokenizer.encode(which.opens, add_special_tokens=False), list(sample.prompt_ids)
    marks, at = iter(which.tokenizer.convert_tokens_to_ids(MARKS)), 0
    while at < len(sample.response_ids):
        end = at
        while end < len(sample.response_ids) and sample.loss_mask[end]:
            end += 1
        if end == at:
            ids.append(sample.response_ids[at])
            at += 1
            continue
        assert ids[len(ids) - len(opens) :] == opens
        ids = [*ids[: len(ids) - len(opens)], next(marks)]
        ids += [i for i in sample.response_ids[end - 1 : end] if i in which.eos_ids]
        at = end
    return ids


def only_the_models_words_differ(which: Family, sample: Sample, messages: Sequence[Message]) -> None:
    """Of `messages`, the assistant's contents are not looked at."""
    marks = iter(MARKS)
    marked = [{**m, "content": next(marks)} if m["role"] == "assistant" else m for m in messages]
    text = which.tokenizer.apply_chat_template(marked, tokenize=False)
    for mark in MARKS:
        text = text.replace(which.lead + mark, mark)
    whole, got = which.tokenizer.encode(text, add_special_tokens=False), outside(which, sample)
    assert got == whole[: len(got)]
    assert which.tokenizer.decode(whole[len(got) :]) == which.after


SUM, OTHER = call("add", a=2, b=3), '<tool_call>{"arguments":{"b":1, "a":1},"name":"add"}</tool_call>'


def dialogue(which: Family, contents: Sequence[str]) -> tuple[list[Message], list[list[int]]]:
    """Turns that call `add`, and an answer: the messages, and what the model draws."""
    messages: list[Message] = [QUESTION]
    turns = []
    for content in contents:
        turns.append(which.said(messages, content))
        messages.append({"role": "assistant", "content": content})
        bodies = [json.loads(part.split("</tool_call>")[0]) for part in content.split("<tool_call>")[1:]]
        sums = [str(body["arguments"]["a"] + body["arguments"]["b"]) for body in bodies]
        messages += [result(number, "add", text) for number, text in enumerate(sums)]
    return messages, turns


async def test_calls_of_tools_read_as_the_template_writes_them(verbatim: Family) -> None:
    which = offering(verbatim)
    messages, turns = dialogue(which, [f"I add.\n{SUM}", f"And {OTHER}\n{SUM} once more.", "It is five."])
    sample, engine = await with_tools(which, turns)
    assert sample.status == "completed"
    assert sample.info == {"turns": 3, "tool_calls": 3, "tool_errors": 0, "tool_failures": 0}
    same_as_rendered(which, sample, messages)
    only_the_models_words_differ(which, sample, messages)
    assert [turn.token_ids[-1] for turn in engine.said] == [which.eos_ids[0]] * 3


async def test_calls_that_the_template_writes_itself_read_the_same() -> None:
    """Where the model writes its calls as the template does."""
    which = offering(family("chatml"))
    calls = [{"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]
    messages, turns = dialogue(which, [f"I add.\n{SUM}", f"More.\n{SUM}\n{SUM}", "It is five."])
    sample, _ = await with_tools(which, turns)
    messages[1] = {"role": "assistant", "content": "I add.", "tool_calls": calls}
    messages[3] = {"role": "assistant", "content": "More.", "tool_calls": calls * 2}
    same_as_rendered(which, sample, messages)


@pytest.mark.parametrize(
    "contents",
    [
        [f"<think>\nLet me think.\n</think>\n\n{SUM}", f"<think>\nAgain.\n</think>\n\n{SUM}{OTHER}", "</think>5"],
        [f"  {SUM} \n", f"\n\n{OTHER}{SUM}\n", " It is five.  "],
        [f"{SUM}\n", f"{SUM}{OTHER}\n\n", "\n"],
    ],
    ids=["thinking", "white space", "line breaks"],
)
@pytest.mark.parametrize("piecemeal", [False, True], ids=["as encoded", "a character each"])
async def test_what_a_template_writes_otherwise_differs_in_the_models_own_tokens_alone(
    every: Family, contents: list[str], piecemeal: bool
) -> None:
    which = offering(every)
    messages, turns = dialogue(which, contents)
    if piecemeal:
        turns = [which.piecemeal(content) for content in contents]
    sample, engine = await with_tools(which, turns)
    assert [turn.token_ids for turn in engine.said] == turns
    assert sample.info["turns"] == 3
    only_the_models_words_differ(which, sample, messages)


async def test_a_turn_that_a_stop_string_ends_is_closed_and_not_trained_to_be(every: Family) -> None:
    which = offering(every)
    messages, turns = dialogue(which, [SUM, f"{OTHER}{SUM}", "It is five."])
    sample, engine = await with_tools(which, turns, stop=("</tool_call>",))
    assert [turn.stop for turn in engine.said] == ["</tool_call>"] * 2 + [None]
    assert [turn.token_ids[-1] == which.eos_ids[0] for turn in engine.said] == [False, False, True]
    del messages[5]  # the answer to the second call, which the stop string cut off
    only_the_models_words_differ(which, sample, messages)


async def test_a_turn_that_is_cut_off_ends_the_conversation_as_it_stands(every: Family) -> None:
    which = offering(every)
    _, turns = dialogue(which, [SUM, "never said"])
    cut = len(turns[0]) - 1  # all but the end of the turn
    sample, _ = await with_tools(which, turns, limit=cut)
    assert (sample.status, sample.response_ids) == ("truncated", turns[0][:cut])


@pytest.mark.parametrize(
    ("name", "closing"),
    [("chatml", "endfor %}<|im_end|>"), ("instructions as text", "' ' + m.content + eos_token }}")],
)
def test_a_turn_without_the_line_break_that_closes_it_is_not_closed_twice(name: str, closing: str) -> None:
    """A template that writes a line break before the end of a turn; the model ends with or without one."""
    which = family(name)
    tokenizer, end = copy.copy(which.tokenizer), which.eos_ids[0]
    changed = closing.replace("<|im_end|>", "{{ '\n' }}<|im_end|>").replace("eos_token", "'\n' + eos_token")
    tokenizer.chat_template = which.tokenizer.chat_template.replace(closing, changed)
    turns, words = ChatTurns(tokenizer), [{"role": "user", "content": "And?"}]
    line, drawn = which.goes_on("\n"), which.goes_on("Five")
    with_line = turns.follow(_stopped([*drawn, *line, end], "Five\n"), words)
    without = turns.follow(_stopped([*drawn, end], "Five"), words)
    assert with_line == without
    assert without.token_ids[0] != end
    unclosed = turns.follow(Generation(drawn, [0.0] * len(drawn), [1] * len(drawn), "stop", "Five", "Five"), words)
    assert unclosed.token_ids == [*line, end, *without.token_ids]
    assert unclosed.text == "\n" + without.text


async def test_single_turn(verbatim: Family) -> None:
    turn = verbatim.said([QUESTION], "It is five.")
    engine = ScriptedEngine([turn], verbatim.tokenizer, eos_ids=verbatim.eos_ids)
    sample = Sample("", verbatim.ids([QUESTION], generation=True))
    await SingleTurnGenerate(Limits())(sample, SamplingParams(max_new_tokens=50), engine)
    checked(sample, engine)
    assert (sample.status, sample.response.lstrip()) == ("completed", "It is five.")
    same_as_rendered(verbatim, sample, [QUESTION, {"role": "assistant", "content": "It is five."}])


async def test_a_chat_of_a_hook(every: Family) -> None:
    words = ["And one more?", "Really?"]
    messages: list[Message] = [QUESTION]
    turns = []
    for answer, more in zip(["It is five.", "Six.", "I think so."], [*words, None], strict=True):
        turns.append(every.said(messages, answer))
        messages.append({"role": "assistant", "content": answer})
        if more:
            messages.append({"role": "user", "content": more})
    engine = ScriptedEngine(turns, every.tokenizer, eos_ids=every.eos_ids)
    sample = Sample("", every.ids([QUESTION], generation=True))
    generate = CustomGenerate("chat_hooks:chat", {"words": words})
    sample = await generate(sample, SamplingParams(max_new_tokens=500), engine)
    checked(sample, engine)
    assert sample.status == "completed", sample.info
    only_the_models_words_differ(every, sample, messages)
    if every.name in VERBATIM:
        same_as_rendered(every, sample, messages)


async def test_search_is_one_turn_of_the_assistant(verbatim: Family) -> None:
    async def search(query: str) -> list[Document]:
        return [{"id": "1", "contents": f'"T"\nabout {query}'}]

    tokenizer, end = verbatim.tokenizer, verbatim.eos_ids[0]
    first, third = "I look.<search>who wrote it</search>", "<answer>the author</answer>"
    turns = [verbatim.said([QUESTION], first), [*verbatim.goes_on("Hm"), end], [*verbatim.goes_on(third), end]]
    engine = ScriptedEngine(turns, tokenizer, eos_ids=verbatim.eos_ids)
    sample = Sample("", verbatim.ids([QUESTION], generation=True))
    await SearchGenerate(Limits(), 3, search)(sample, SamplingParams(max_new_tokens=1500), engine)
    checked(sample, engine)
    assert sample.status == "completed"
    information = format_information([{"id": "1", "contents": '"T"\nabout who wrote it'}])
    told = f"{first}{information}Hm{INVALID_ACTION}{third}"
    # The end that the model put in the middle stays: its own token, which the template would not write there.
    ids = list(sample.response_ids)
    del ids[ids.index(end)]
    whole = verbatim.ids([QUESTION, {"role": "assistant", "content": told}])
    if verbatim.name.startswith(("instructions", "model turns")):
        assert whole[: len(sample.prompt_ids) + len(ids)] == [*sample.prompt_ids, *ids]
    # The others have tokens for `>` with a line break: the model's `>` and the observation's line break are two.
    shown = tokenizer.decode(whole, skip_special_tokens=False)
    text = tokenizer.decode([*sample.prompt_ids, *ids], skip_special_tokens=False)
    assert shown == text + verbatim.eos[-1] + verbatim.after  # the answer ends by its tag
    observed = [i for i, mask in zip(sample.response_ids, sample.loss_mask, strict=True) if not mask]
    assert tokenizer.decode(observed, skip_special_tokens=False) == information + INVALID_ACTION


def test_text_in_the_middle_has_no_space_of_its_own(every: Family) -> None:
    tokenizer = every.tokenizer
    for text in ("\n\n<information>it</information>\n\n", "again", " spaced", "é", ""):
        before = tokenizer.encode("some text", add_special_tokens=False)
        whole = [*before, *continuation_ids(tokenizer, text)]
        assert tokenizer.decode(whole, skip_special_tokens=False) == "some text" + text


async def test_what_tools_answer_cannot_pose_as_the_template(every: Family) -> None:
    which = offering(every)
    added = which.tokenizer.get_added_vocab()
    made = []
    for asked in (call("echo", text="harmless"), call("echo", text="".join(added))):
        turns = [which.piecemeal(asked), which.said([QUESTION], "Done.")]
        sample, _ = await with_tools(which, turns)
        observed = [i for i, mask in zip(sample.response_ids, sample.loss_mask, strict=True) if not mask]
        made.append([i for i in observed if i in added.values()])
        assert sample.info["turns"] == 2
    assert made[0] == made[1]


def test_a_template_that_refuses_a_conversation_is_named() -> None:
    which = family("instructions")
    with pytest.raises(UserError, match=r"the chat template refuses a conversation: the id of a call has nine"):
        ChatTurns(which.tokenizer).follow(_stopped([5], ""), [{"role": "tool", "content": "5"}])


def _stopped(ids: list[int], text: str) -> Generation:
    return Generation(ids, [0.0] * len(ids), [1] * len(ids), "stop", None, text)
