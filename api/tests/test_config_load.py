"""From text to an RLJob, or to sentences with file and line."""

import json
import textwrap
from pathlib import Path

import pytest
from rljob_api.errors import ManifestError, UserError
from rljob_api.manifest.document import MAX_BYTES, parse_document
from rljob_api.manifest.load import load, loads

HEAD = "apiVersion: rljob.io/v1alpha1\nkind: RLJob\nmetadata: {name: a}\n"


def value(text: str) -> object:
    return parse_document(textwrap.dedent(text).encode(), "f.yaml").value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-6", 1e-6),
        ("1.0E+3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 15),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("2026-11-20", "2026-11-20"),
        ("1:30", "1:30"),
        (".nan", ".nan"),
        ("'16'", "16"),
        ("v1", "v1"),
        ("{b: [c, 1]}", {"b": ["c", 1]}),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(text: str, expected: object) -> None:
    assert value(f"a: {text}") == {"a": expected}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: &x [1]\nc: *x", "f.yaml:3: the alias *x is refused"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3: the key 'a' stands twice"),
        ("a: 1\n---\nb: 2", "more than one document"),
        ("a: [1", "f.yaml:1: not valid YAML"),
        ("", "f.yaml: is empty"),
        ("a: !!python/object:os.system x", "tag:yaml.org,2002:python/object:os.system is refused"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 64 levels deep"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "the alias *a is refused"),
        ("a: " + "9" * 5000, "f.yaml:1: the number 99999999… has 5000 digits; at most 64"),
        ('{"a": ' + "9" * 5000 + "}", "f.yaml: the number 99999999… has 5000 digits; at most 64"),
        (
            "a: !!python/object/apply:os.system [id]",
            "the tag tag:yaml.org,2002:python/object/apply:os.system is refused",
        ),
        ("{" + '"a":{' * 3000 + "}" * 3001, "nested"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("a: \x00", "not valid YAML"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1]', "f.yaml:1: not valid JSON"),
    ],
)
def test_what_is_no_single_plain_document_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        value(text)
    assert said in str(refused.value)


def test_yaml_in_flow_style_and_json_are_both_read() -> None:
    assert value("{a: 1, b: [x]}") == value('{"a": 1, "b": ["x"]}') == {"a": 1, "b": ["x"]}


def test_too_large_and_not_text() -> None:
    with pytest.raises(UserError, match="larger than"):
        parse_document(b"a" * (MAX_BYTES + 1), "f.yaml")
    with pytest.raises(UserError, match="is not UTF-8"):
        parse_document(b"a: \xff", "f.yaml")


@pytest.mark.parametrize(("name", "said"), [("missing.yaml", "no such file"), ("", "is a folder")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(tmp_path / name)


def test_one_line_per_problem_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(HEAD + "spec:\n  model: {path: m}\n  rollout:\n    batchSze: 3\n    batchSize: many\n")
    with pytest.raises(ManifestError) as refused:
        load(file)
    assert refused.value.message.splitlines() == [
        f"{file}:7: spec.rollout.batchSze: unknown field; did you mean batchSize?",
        f'{file}:8: spec.rollout.batchSize: "many" is not an integer (≥ 1)',
    ]


def test_a_field_in_the_wrong_section_is_sent_to_its_own() -> None:
    with pytest.raises(ManifestError, match=r"did you mean spec\.rollout\.numRollout\?"):
        loads(HEAD + "spec: {model: {path: m}, numRollout: 3}")


def test_null_stands_for_a_field_that_is_left_out_but_not_in_free_maps() -> None:
    job = loads(HEAD + "spec:\n  model: {path: m}\n  rollout:\n    batchSize: ~\n    engineArgs: {a: ~}\n  sft: ~\n")
    assert job.spec.rollout.batch_size == 16
    assert job.spec.rollout.engine_args == {"a": None}
    assert job.spec.sft is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "is not an RLJob"),
        ("kind: Pod\napiVersion: v1", "is v1 Pod, not rljob.io/v1alpha1 RLJob"),
        ("apiVersion: rljob.io/v1alpha1\nkind: RLJob\nspec: {}", "metadata: required, with a name"),
    ],
)
def test_other_objects_are_named(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loads(text)


def test_a_job_survives_the_round_trip() -> None:
    job = loads(HEAD + "spec: {model: {path: m}, optimizer: {lr: 1e-6}}")
    assert loads(json.dumps(job.to_manifest())) == job
