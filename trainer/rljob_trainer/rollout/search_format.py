"""How search results and corrections read to the model, in Search-R1's wording. Shared by rollout and demonstrations.

Demonstrations must hold exactly the text that a rollout will show, so both call these functions; imports nothing heavy.
"""

from collections.abc import Mapping, Sequence

INVALID_ACTION = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
"""Observation after a turn that neither searched nor answered."""


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of a passage: the first line of `contents` is the title, in double quotes in wiki-18."""
    title, _, text = contents.partition("\n")
    return title.strip().strip('"'), text.strip()


def format_documents(documents: Sequence[Mapping[str, str]]) -> str:
    """One line per document, `Doc 1(Title: …) text`. A document is {"id", "contents"}, as /retrieve answers."""
    lines = []
    for number, document in enumerate(documents, start=1):
        title, text = split_contents(document["contents"])
        lines.append(f"Doc {number}(Title: {title}) {text}")
    return "\n".join(lines)


def format_information(documents: Sequence[Mapping[str, str]]) -> str:
    """The whole observation of a search: the documents between `<information>` tags."""
    return f"\n\n<information>{format_documents(documents)}</information>\n\n"
