"""`rljob convert`: weights between Hugging Face folders and Megatron's distributed checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rljob_api.errors import UserError

from rljob_cli.output import Format, console, emit

if TYPE_CHECKING:
    from rljob_trainer.export.run import Converted
    from rljob_trainer.export.torch_dist import Progress as Report


class To(StrEnum):
    """Format of the target."""

    auto = "auto"
    megatron = "megatron"
    hf = "hf"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Hugging Face folder, or Megatron checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write.")],
    to: Annotated[To, typer.Option("--to", help="Format of TARGET; auto: the other one than SOURCE's.")] = To.auto,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", min=1, help="Rows of the embedding without padding; by default the config's."),
    ] = None,
    divisible_by: Annotated[
        int,
        typer.Option(
            "--make-vocab-size-divisible-by",
            min=1,
            help="To Megatron: the embedding's rows are padded to a multiple of this times --tensor-parallel.",
        ),
    ] = 128,
    tensor_parallel: Annotated[
        int, typer.Option("--tensor-parallel", min=1, help="To Megatron: see --make-vocab-size-divisible-by.")
    ] = 1,
    hf_config: Annotated[
        Path | None,
        typer.Option(
            "--hf-config",
            file_okay=False,
            help="To Hugging Face: folder with the model's config and tokenizer; kept within what this command wrote.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a TARGET that is not empty.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="Form of the output.")] = Format.text,
) -> None:
    """Convert weights between Hugging Face and Megatron (torch_dist), exactly. Needs neither a GPU nor Megatron.

    The architecture is read from the Hugging Face config: Llama, Qwen2 and Qwen2.5, Qwen3, Qwen3-MoE.
    """
    if not source.is_dir():
        raise UserError(f"SOURCE {source}: there is no such folder", hint="download a Hub model first: hf download")
    try:
        from rljob_trainer.export.run import hf_to_torch_dist, is_torch_dist, torch_dist_to_hf
    except ModuleNotFoundError as missing:
        raise UserError(f"converting needs the package {missing.name!r}", hint="install rljob[trainer]") from None
    backwards = is_torch_dist(source)
    if to is not To.auto and backwards != (to is To.hf):
        raise UserError(
            f"--to {to}: SOURCE {source} is {'a Megatron' if backwards else 'no Megatron'} checkpoint",
            hint=f"leave --to out, or give {To.hf if backwards else To.megatron}",
        )
    options: dict[str, Any] = {"vocab_size": vocab_size, "overwrite": overwrite}
    with _progress(show=not quiet and output is Format.text) as report:
        if backwards:
            done = torch_dist_to_hf(source, target, hf_config=hf_config, progress=report, **options)
        else:
            options |= {"divisible_by": divisible_by, "tensor_parallel": tensor_parallel}
            done = hf_to_torch_dist(source, target, progress=report, **options)
    _tell(done, "Hugging Face" if backwards else "Megatron torch_dist", output)


def _tell(done: "Converted", form: str, output: Format) -> None:
    data = {
        "target": str(done.target),
        "format": form,
        "architecture": done.architecture,
        "tensors": done.tensors,
        "vocabRows": done.vocab,
    }
    emit(
        data,
        output,
        lambda: console().print(
            f"{escape(str(done.target))}: {form}, {done.architecture}, {done.tensors:,} tensors, "
            f"{done.vocab:,} rows of vocabulary"
        ),
    )


@contextmanager
def _progress(*, show: bool) -> "Iterator[Report | None]":
    """A bar of bytes on standard error."""
    if not show:
        yield None
        return
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
