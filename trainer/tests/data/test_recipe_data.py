"""The data sets of the recipes: rows as trainers read them, from sources of the real schemas."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PromptDataset, SftDataset
from rljob_cli.app import app
from rljob_trainer.data import SftSource, load_eval
from rljob_trainer.data.recipes import RECIPES, prepare, prepare_data
from typer.testing import CliRunner

_spec = importlib.util.spec_from_file_location("made_sources", Path(__file__).with_name("made_sources.py"))
assert _spec is not None
assert _spec.loader is not None
made: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_search_r1s_training_merge(tmp_path: Path, tokenizer: Any) -> None:
    summary = prepare("search-r1-train", tmp_path / "train.jsonl", source=made.search_r1(tmp_path / "flashrag"))
    assert [(each.name, each.split, each.written) for each in summary.sources] == [
        ("nq", "train", 6),
        ("hotpotqa", "train", 6),
    ]
    rows = lines(tmp_path / "train.jsonl")
    assert [row["data_source"] for row in rows] == ["nq"] * 6 + ["hotpotqa"] * 6
    assert rows[0]["question"] == "who founded Zafo according to nq?"
    assert rows[0]["reward_model"]["ground_truth"] == {"target": ["Zafo the Elder", "Zafo"]}
    prompt = rows[0]["prompt"][0]["content"]
    assert prompt.rstrip().endswith("Question: who founded Zafo according to nq?")
    for tag in ("<think>", "<search>", "</search>", "<information>", "<answer>", "</answer>"):
        assert tag in prompt
    dataset = PromptDataset.model_validate(
        {"path": "train.jsonl", "labelKey": "reward_model.ground_truth", "sourceKey": "data_source"}
        | {"applyChatTemplate": True, "maxPromptLength": 4096}
    )
    loaded = load_eval(dataset, tokenizer, tmp_path)
    assert {row.source for row in loaded.rows} == {"nq", "hotpotqa"}


def test_the_seven_evaluation_sets_stay_in_order(tmp_path: Path) -> None:
    summary = prepare("search-r1-eval", tmp_path / "eval.parquet", source=made.search_r1(tmp_path / "flashrag"))
    assert [(each.name, each.split) for each in summary.sources] == [
        ("nq", "test"),
        ("triviaqa", "test"),
        ("popqa", "test"),
        ("hotpotqa", "dev"),
        ("2wikimultihopqa", "dev"),
        ("musique", "dev"),
        ("bamboogle", "test"),
    ]
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / "eval.parquet").to_pylist()
    assert summary.rows == len(rows) == 28
    assert [row["extra_info"]["index"] for row in rows] == list(range(4)) * 7


def test_openr1_for_fine_tuning_and_for_reinforcement_learning(tmp_path: Path) -> None:
    source = made.write(tmp_path / "data" / "train-00000-of-00001.parquet", made.openr1()).parent.parent
    sft = prepare("openr1-math-sft", tmp_path / "sft.jsonl", source=source)
    assert (sft.rows, sft.sources[0].dropped) == (7, {"no answer of the assistant": 1})
    assert lines(tmp_path / "sft.jsonl")[0]["messages"][1]["content"].startswith("<think>")
    rl = prepare("openr1-math-rl", tmp_path / "rl.jsonl", source=source)
    assert rl.sources[0].dropped == {"no answer": 1, "a proof: no answer to compare with": 1}
    assert lines(tmp_path / "rl.jsonl")[1] == {"prompt": "What is 1 + 1?", "label": "2", "data_source": "made_up"}


def test_stratos_is_read_by_the_conversations_format(tmp_path: Path, tokenizer: Any) -> None:
    source = made.write(tmp_path / "bespoke-stratos-17k.jsonl", made.stratos())
    prepare("bespoke-stratos-17k", tmp_path / "stratos.jsonl", source=source)
    dataset = SftDataset(path="stratos.jsonl", format="conversations")
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content }}{{ '<eos>' if m.role == 'assistant' else '<search>' }}{% endfor %}"
        )
        made_rows = SftSource(dataset, tokenizer, tmp_path, batch_size=2, seed=0, max_length=900)
    finally:
        tokenizer.chat_template = template
    assert len(made_rows) == 5


def test_mathematics_of_slime(tmp_path: Path) -> None:
    for name, file in (("dapo-math-17k", "dapo-math-17k.jsonl"), ("aime-2024", "aime-2024.jsonl")):
        rows = [*made.math(), {"prompt": "plain", "label": 3}, {"prompt": "nothing", "label": None}]
        made.write(tmp_path / file, rows)
        summary = prepare(name, tmp_path / "out.jsonl", source=tmp_path)
        assert (summary.rows, summary.sources[0].dropped) == (8, {"no label": 1})
        assert lines(tmp_path / "out.jsonl")[7] == {
            "prompt": [{"role": "user", "content": "plain"}],
            "label": "3",
            "data_source": name,
        }


def test_what_is_missing_or_of_another_schema_is_one_error_and_no_file(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="there is no recipe 'x'; there are search-r1-train"):
        prepare("x", target)
    with pytest.raises(UserError, match=r"out.csv must end in .jsonl or .parquet"):
        prepare("aime-2024", tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"source: .*/no does not exist"):
        prepare("aime-2024", target, source=tmp_path / "no")
    with pytest.raises(UserError, match=r"source 'nq' is not in "):
        prepare("search-r1-train", target, source=tmp_path)
    one = made.write(tmp_path / "nq.jsonl", made.flashrag("nq", "train"))
    with pytest.raises(UserError, match="is one file, but the recipe reads nq, hotpotqa"):
        prepare("search-r1-train", target, source=one)
    made.write(tmp_path / "hotpotqa.jsonl", [{"question": "a", "answers": ["b"]}])
    with pytest.raises(UserError, match=r"hotpotqa.jsonl, row 0 is of another schema: no column `golden_answers`; its"):
        prepare("search-r1-train", target, source=tmp_path)
    made.write(tmp_path / "aime-2024.jsonl", [{"prompt": 3, "label": "1"}])
    with pytest.raises(UserError, match="`prompt` is neither text nor a list"):
        prepare("aime-2024", target, source=tmp_path)
    made.write(tmp_path / "aime-2024.jsonl", [{"prompt": "a", "label": ""}])
    with pytest.raises(UserError, match="none of its 1 rows can be used"):
        prepare("aime-2024", target, source=tmp_path)
    assert not target.exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_the_command(tmp_path: Path) -> None:
    made.write(tmp_path / "aime-2024.jsonl", made.math())
    target = tmp_path / "out.jsonl"
    result = CliRunner().invoke(
        app, ["data", "prepare", "aime-2024", str(target), "--source", str(tmp_path), "--limit", "3", "-o", "json"]
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 3
    assert len(lines(target)) == 3
    listed = CliRunner().invoke(app, ["data", "list", "-o", "json"])
    assert {recipe["name"] for recipe in json.loads(listed.stdout)["recipes"]} == set(RECIPES)
    wrong = CliRunner().invoke(app, ["data", "prepare", "aime-2024", str(target), "--source", str(tmp_path / "no")])
    assert wrong.exit_code == 2


def test_a_manifest_can_prepare_it(tmp_path: Path) -> None:
    made.write(tmp_path / "sources" / "aime-2024.jsonl", made.math())
    prepare_data(tmp_path, files={"data/aime.jsonl": "aime-2024"}, source="sources")
    assert len(lines(tmp_path / "data/aime.jsonl")) == 7
