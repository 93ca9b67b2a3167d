"""Commands that need no cluster: validate, plan, run, schema, version."""

import json
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rljob_api.errors import ManifestError, Problem, UserError
from rljob_api.rules.checks import check
from rljob_api.v1alpha1.job import API_VERSION, RLJob

from rljob_cli.estimate import human
from rljob_cli.exits import USER_ERROR
from rljob_cli.manifest import Manifest, load_manifest
from rljob_cli.output import Format, console, emit, error, table
from rljob_cli.plans import manifests_of, plan_of

File = Annotated[str, typer.Argument(metavar="FILE", help="RLJob manifest, YAML or JSON; - reads standard input.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the output.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, such as spec.rollout.numRollout=10."),
]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--overlay", metavar="FILE", help="YAML merged into the manifest (RFC 7386); may be repeated."),
]
Directory = Annotated[
    Path | None, typer.Option("--dir", file_okay=False, help="The job's directory; by default runs/NAME.")
]


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="RLJob manifests; - reads standard input.")],
    overlays: Overlays = None,
    sets: Sets = None,
    output: Output = Format.text,
) -> None:
    """Check manifests: every field, and what crosses fields. Needs no cluster."""
    results = [_validated(file, sets, overlays) for file in files]
    data = [
        {
            "file": file,
            "name": name,
            "valid": not problems,
            "problems": [{"path": p.path, "message": p.message, "line": p.line} for p in problems],
        }
        for file, name, problems in results
    ]

    def text() -> None:
        for file, name, problems in results:
            for problem in problems:
                error(f"{file}{f':{problem.line}' if problem.line else ''}: {problem}")
            if not problems:
                console().print(f"{escape(file)}: RLJob {escape(str(name))} is valid")

    emit({"files": data}, output, text)
    if any(problems for _, _, problems in results):
        raise typer.Exit(USER_ERROR)


def _validated(file: str, sets: list[str] | None, overlays: list[str] | None) -> tuple[str, str | None, list[Problem]]:
    try:
        manifest = load_manifest(file, sets, overlays)
    except ManifestError as wrong:
        return file, None, wrong.problems
    except UserError as wrong:
        return file, None, [Problem("", wrong.message.removeprefix(f"{file}: "))]
    return file, manifest.job.metadata.name, manifest.located(check(manifest.job))


def plan(
    file: File,
    directory: Directory = None,
    overlays: Overlays = None,
    sets: Sets = None,
    manifests: Annotated[
        bool, typer.Option("--manifests", help="Print the objects that the operator would create, in full.")
    ] = False,
    output: Output = Format.text,
) -> None:
    """Show what a manifest amounts to: batches, steps, ranks, GPUs, memory, the objects it would become."""
    manifest = load_manifest(file, sets, overlays)
    if manifests:
        refuse_problems(manifest)
        children = manifests_of(manifest.job)
        emit({"items": children}, output, lambda: print(yaml.safe_dump_all(children, sort_keys=False), end=""))
        return
    data = plan_of(manifest.job, [job_directory(manifest.job, directory), Path.cwd()])
    emit(data, output, lambda: _show_plan(data))
    if data["problems"]:
        raise typer.Exit(USER_ERROR)


def _show_plan(data: dict[str, Any]) -> None:
    out = console()
    out.print(f"[bold]RLJob {escape(data['name'])}[/]\n")
    if batch := data["batch"]:
        out.print(
            f"each rollout   {batch['promptsPerRollout']} prompts × {batch['samplesPerPrompt']} samples = "
            f"{batch['samplesPerRollout']} samples = {batch['globalBatchSize']} per optimizer step × "
            f"{batch['numStepsPerRollout']}"
        )
    if steps := data["steps"]:
        sft = "by epochs" if steps["sft"] is None else f"{steps['sft']:,}"
        total = "known once the data is read" if steps["total"] is None else f"{steps['total']:,}"
        out.print(f"steps          SFT {sft} + RL {steps['rl']:,} ({steps['rollouts']:,} rollouts); total {total}")
    ranks = data["ranks"]
    out.print(
        f"trainer        {ranks['world']} ranks = TP {ranks['tensor']} × PP {ranks['pipeline']} × "
        f"CP {ranks['context']} × DP {ranks['dataParallel'] or '?'}"
    )
    out.print(f"rollout        {ranks['engines']} engines")
    if model := data["model"]:
        unknown = "" if model["vocabulary"] else ", embeddings not counted (no tokenizer there yet)"
        out.print(f"model          {model['parameters']:,} parameters{unknown}")
    else:
        out.print("model          not on this machine: no estimate of memory")
    groups = ("trainer", "rollout", "retriever")
    rows = [(name, data["pods"][name], data["gpus"][name]) for name in groups]
    out.print()
    out.print(table(("group", "pods", "GPUs"), [("head", data["pods"]["head"], 0), *rows]))
    out.print(f"GPUs in all    {data['gpus']['total']}")
    if queue := data["queue"]:
        priority = f", priority class {escape(queue['priorityClass'])}" if "priorityClass" in queue else ""
        out.print(f"queue          each attempt waits for Kueue in LocalQueue {escape(queue['name'])}{priority}")
    if memory := data["memory"]:
        out.print()
        names = {
            "weights_bytes": "rank: weights",
            "gradients_bytes": "rank: gradients",
            "optimizer_bytes": "rank: optimizer states",
            "reference_bytes": "rank: reference model",
            "rank_total_bytes": "rank: in all, without activations",
            "engine_weights_bytes": "engine: weights",
            "kv_cache_per_sequence_bytes": "engine: KV cache of one longest sequence",
        }
        out.print(table(("memory of one", "at least"), [(label, human(memory[key])) for key, label in names.items()]))
    if data["children"]:
        out.print()
        out.print(table(("would be created", "name"), [(c["kind"], c["name"]) for c in data["children"]]))
    for problem in data["problems"]:
        error(f"{problem['path']}: {problem['message']}")


def run(
    file: File,
    directory: Directory = None,
    code: Annotated[
        Path | None,
        typer.Option("--code", exists=True, file_okay=False, help="Folder of your modules, first on the Python path."),
    ] = None,
    overlays: Overlays = None,
    sets: Sets = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; what an earlier run committed is kept aside.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
    output: Output = Format.text,
) -> None:
    """Run a job on this machine: the same manifest, retriever and training loop as on a cluster.

    Interrupt it (Ctrl-C) and it commits; run it again and it goes on from there. With `-o json` or `-o yaml` only the
    summary is printed, when the job has ended.
    """
    overrides = [*(sets or []), *(["spec.checkpoint.overwrite=Replace"] if fresh else [])]
    manifest = load_manifest(file, overrides, overlays)
    refuse_problems(manifest)
    try:
        from rljob_trainer.local.run import run_local
    except ModuleNotFoundError as missing:
        raise UserError(
            f"running a job here needs the package {missing.name!r}", hint="install rljob[trainer,retriever]"
        ) from None
    target = job_directory(manifest.job, directory)
    exit_code = run_local(manifest.job, target, code=code, quiet=quiet or output is not Format.text)
    if output is not Format.text:
        summary = target / "summary.json"
        ended = {"job": manifest.job.metadata.name, "exitCode": exit_code}
        emit(ended | (json.loads(summary.read_text()) if summary.is_file() else {}), output, lambda: None)
    raise typer.Exit(exit_code)


def schema(
    crd: Annotated[bool, typer.Option("--crd", help="The CustomResourceDefinition, as kubectl applies it.")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="JSON Schema, for editors.")] = False,
    output: Annotated[Format | None, typer.Option("--output", "-o", help="Form of the output.")] = None,
) -> None:
    """Print the definition of an RLJob: as JSON Schema (the default) or as a CustomResourceDefinition."""
    if crd and json_schema:
        raise UserError("give one of --crd and --json-schema")
    if crd:
        from rljob_api.codegen.crd import crd as definition
        from rljob_api.codegen.crd import crd_yaml

        data = definition()
        emit(data, output or Format.text, lambda: print(crd_yaml(), end=""))
        return
    data = RLJob.model_json_schema(by_alias=True)
    emit(data, output or Format.json, lambda: print(json.dumps(data, indent=2)))


def version(output: Output = Format.text) -> None:
    """Print the version of rljob, of its API and of Python."""
    data = {"rljob": installed("rljob"), "api": API_VERSION, "python": sys.version.split()[0]}
    emit(data, output, lambda: print(f"rljob {data['rljob']} ({data['api']}, Python {data['python']})"))


def job_directory(job: RLJob, given: Path | None) -> Path:
    """The job's directory on this machine."""
    return given or Path("runs") / job.metadata.name


def refuse_problems(manifest: Manifest) -> None:
    """Raise ManifestError when the job cannot run."""
    problems = check(manifest.job)
    if problems:
        raise ManifestError(manifest.source, manifest.located(problems))
