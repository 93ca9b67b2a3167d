"""The commands of `rljob`."""

from collections.abc import Callable

import typer

from rljob_cli import convert, data, local, remote, report, top
from rljob_cli.exits import MEANINGS
from rljob_cli.guard import guarded

_EXITS = "\n\n".join(f"{code}: {meaning}" for code, meaning in MEANINGS.items())

app = typer.Typer(
    name="rljob",
    help="Reinforcement learning of language models: one manifest, a laptop and a cluster.",
    epilog=f"Exit codes:\n\n{_EXITS}",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "A manifest, here": (local.validate, local.plan, local.run),
    "A cluster": (remote.submit, remote.status, top.top, remote.logs),
    "A job on a cluster": (report.report, remote.suspend, remote.resume),
    "Models": (convert.convert,),
    "About": (local.schema, local.version),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(guarded(_command))

_data = typer.Typer(help="Prepare the data sets of the recipes.", no_args_is_help=True)
_data.command("list")(guarded(data.recipes))
_data.command("prepare")(guarded(data.prepare))
app.add_typer(_data, name="data", rich_help_panel="Data")
