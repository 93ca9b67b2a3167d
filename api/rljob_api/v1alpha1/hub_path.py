"""How a manifest names a data set on the Hub: `hf://owner/name[:config][@revision][/split]`."""

import re
from dataclasses import dataclass

PREFIX = "hf://"
_FORM = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(:(?P<config>[\w.-]+))?(@(?P<revision>[\w.-]+))?(/(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True, slots=True)
class HubPath:
    """One split of a data set on the Hub."""

    repo: str
    """`owner/name`."""
    config: str | None
    """The subset; None: the data set's default."""
    revision: str | None
    """Branch, tag or commit; None: the main branch."""
    split: str


def parse_hub_path(path: str, split: str = "train") -> HubPath:
    """The parts of `path`; `split` is used where it names none. Raises ValueError, saying the form, for another one."""
    found = _FORM.fullmatch(path)
    if found is None:
        raise ValueError(f"{path} is not of the form hf://owner/name[:config][@revision][/split]")
    return HubPath(found["repo"], found["config"], found["revision"], found["split"] or split)
