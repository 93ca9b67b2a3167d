"""What can be prepared: sources, and how a row of each becomes one of ours. Pure functions of rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rljob_api.errors import UserError

from rljob_trainer.data.demonstrations import from_conversations
from rljob_trainer.data.rows import Row, is_messages

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
SEARCH_PROMPT = (
    "Find the answer to the question below. Think before every step, between <think> and </think>. Whenever you do not "
    "know something, look it up: write a query between <search> and </search>, and the passages that were found will "
    "be given to you between <information> and </information>. You may search as often as you like. Once you know "
    "enough, write the answer alone, without explanation, between <answer> and </answer>, for example "
    "<answer> Beijing </answer>. Question: {question}\n"
)
"""Asks for the tags that `generate.type: search` and the `em` reward read."""


class Dropped(Exception):  # noqa: N818 - no error: the reason why a row is left out, counted
    """The row is left out; the argument says why."""


class WrongSchemaError(Exception):
    """The row is not of the source's schema; the argument says what is missing."""


@dataclass(frozen=True)
class Source:
    """One file (or the shards of one split) that a recipe reads."""

    name: str
    """Name of the source in rows and summaries; for local files the folder or stem of the file."""
    repo: str
    config: str | None
    splits: tuple[str, ...]
    """The first that is there is taken."""


@dataclass(frozen=True)
class Recipe:
    """A data set that `rljob data prepare` can make."""

    about: str
    sources: tuple[Source, ...]
    convert: Callable[[Row, Source, str, int], Row]
    """(row, its source, split, number in the source) → row to write. Raises Dropped and WrongSchemaError."""
    use: str
    """The fields of a manifest that read the result."""


def _search_row(row: Row, source: Source, split: str, number: int) -> Row:
    """FlashRAG's {question, golden_answers} in the columns of Search-R1's files."""
    question, answers = _need(row, "question", str), _need(row, "golden_answers", list)
    question = question.strip()
    answers = [str(answer) for answer in answers if _present(answer)]
    if not question:
        raise Dropped("empty question")
    if not answers:
        raise Dropped("no golden answer")
    if not question.endswith("?"):
        question += "?"
    return {
        "id": str(row.get("id", f"{split}_{number}")),
        "data_source": source.name,
        "question": question,
        "golden_answers": answers,
        "prompt": [{"role": "user", "content": SEARCH_PROMPT.format_map({"question": question})}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"split": split, "index": number},
    }


def _openr1_sft(row: Row, source: Source, split: str, number: int) -> Row:
    messages = _need(row, "messages", list)
    if not messages:
        raise Dropped("no messages")
    if not is_messages(messages):
        raise WrongSchemaError("`messages` is not a list of {role, content}")
    if messages[-1]["role"] != "assistant" or not str(messages[-1]["content"] or "").strip():
        raise Dropped("no answer of the assistant")
    kept = {key: row[key] for key in ("uuid", "source", "answer") if row.get(key) is not None}
    return kept | {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}


def _openr1_rl(row: Row, source: Source, split: str, number: int) -> Row:
    problem, answer = _need(row, "problem", str), row.get("answer")
    if "answer" not in row:
        raise WrongSchemaError("no column `answer`")
    if not problem.strip():
        raise Dropped("empty problem")
    if not _present(answer):
        raise Dropped("no answer")
    if row.get("problem_type") == "proof" or row.get("question_type") == "proof":
        raise Dropped("a proof: no answer to compare with")
    return {
        "prompt": problem.strip(),
        "label": str(answer).strip(),
        "data_source": str(row.get("source") or source.name),
    }


def _stratos(row: Row, source: Source, split: str, number: int) -> Row:
    turns = _need(row, "conversations", list)
    try:
        messages = from_conversations(row, number)
    except UserError as error:
        raise WrongSchemaError(error.message.split(": ", 2)[-1]) from None
    if not turns or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise Dropped("no answer of the assistant")
    return {
        "system": str(row.get("system") or ""),
        "conversations": [{"from": turn["from"], "value": turn["value"]} for turn in turns],
    }


def _math_row(row: Row, source: Source, split: str, number: int) -> Row:
    """slime's {prompt: messages, label}."""
    prompt, label = row.get("prompt"), row.get("label")
    if "prompt" not in row or "label" not in row:
        raise WrongSchemaError(f"no column `{'prompt' if 'prompt' not in row else 'label'}`")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if prompt is None or not is_messages(prompt):
        raise WrongSchemaError("`prompt` is neither text nor a list of {role, content}")
    if not _present(label):
        raise Dropped("no label")
    return {
        "prompt": [{"role": message["role"], "content": message["content"]} for message in prompt],
        "label": str(label).strip(),
        "data_source": source.name,
    }


def _present(value: Any) -> bool:
    """Whether a value is there: neither null, NaN (as pandas writes missing ones) nor blank."""
    return value is not None and value == value and bool(str(value).strip())


def _need(row: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in row:
        raise WrongSchemaError(f"no column `{key}`")
    if not isinstance(row[key], kind):
        raise WrongSchemaError(f"`{key}` is a {type(row[key]).__name__}, not a {kind.__name__}")
    return row[key]


def _flashrag(name: str, *splits: str) -> Source:
    return Source(name, FLASHRAG, name, splits)


_SEARCH_USE = "labelKey: reward_model.ground_truth, sourceKey: data_source"
_MATH_USE = "inputKey: prompt, labelKey: label"

RECIPES: Mapping[str, Recipe] = {
    "search-r1-train": Recipe(
        "Search-R1: questions of NQ and HotpotQA, to train",
        (_flashrag("nq", "train"), _flashrag("hotpotqa", "train")),
        _search_row,
        f"data.train: {{{_SEARCH_USE}}}",
    ),
    "search-r1-eval": Recipe(
        "Search-R1: the seven evaluation sets, in their order",
        tuple(
            _flashrag(name, "test", "dev", "train")
            for name in ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
        ),
        _search_row,
        f"evaluation.datasets: [{{{_SEARCH_USE}}}]",
    ),
    "openr1-math-sft": Recipe(
        "OpenR1-Math-220k: solutions of DeepSeek-R1, for supervised fine-tuning",
        (Source("openr1-math-220k", "open-r1/OpenR1-Math-220k", "default", ("train",)),),
        _openr1_sft,
        "sft.dataset: {format: messages}",
    ),
    "openr1-math-rl": Recipe(
        "OpenR1-Math-220k: problems and answers, for reinforcement learning",
        (Source("openr1-math-220k", "open-r1/OpenR1-Math-220k", "default", ("train",)),),
        _openr1_rl,
        f"data.train: {{{_MATH_USE}}}",
    ),
    "bespoke-stratos-17k": Recipe(
        "Bespoke-Stratos-17k: reasoning demonstrations, for supervised fine-tuning",
        (Source("bespoke-stratos-17k", "HuggingFaceH4/Bespoke-Stratos-17k", None, ("train",)),),
        _stratos,
        "sft.dataset: {format: conversations}",
    ),
    "dapo-math-17k": Recipe(
        "dapo-math-17k: problems with integer answers, to train",
        (Source("dapo-math-17k", "zhuzilin/dapo-math-17k", None, ("train",)),),
        _math_row,
        f"data.train: {{{_MATH_USE}}}",
    ),
    "aime-2024": Recipe(
        "AIME 2024: 30 problems, to evaluate",
        (Source("aime-2024", "zhuzilin/aime-2024", None, ("train",)),),
        _math_row,
        f"evaluation.datasets: [{{{_MATH_USE}}}]",
    ),
}
