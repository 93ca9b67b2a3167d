"""The format of a response that thinks, searches and answers with tags."""

import re

TAG = re.compile(r"<(/?)(think|search|information|answer)>")


def is_well_formed(response: str) -> bool:
    """Whether a response keeps to the format:

    1. Every tag of `think`, `search`, `information`, `answer` is opened and closed, and none lies within another.
    2. There is exactly one `<answer>…</answer>`, it is the last block, and it is not blank.
    3. Every `<search>…</search>` is not blank and the next block is its `<information>…</information>`, with nothing
       but white space between; every information block follows a search that way.
    4. `<think>` blocks may stand anywhere else before the answer.

    Text outside the tags (an end-of-sequence token, a corrective observation after an invalid action) is not judged.
    Tags are matched exactly: lower case, no attributes or spaces. What stands inside an information block is the
    retriever's, not the model's: tags of other kinds in it are not judged.
    """
    blocks = _blocks(response)
    if blocks is None or not blocks:
        return False
    kinds = [kind for kind, _, _ in blocks]
    if kinds.count("answer") != 1 or kinds[-1] != "answer":
        return False
    for place, (kind, start, end) in enumerate(blocks):
        if kind in ("answer", "search") and not _content(response, kind, start, end).strip():
            return False
        if kind == "search" and (kinds[place + 1] != "information" or response[end : blocks[place + 1][1]].strip()):
            return False
        if kind == "information" and (place == 0 or kinds[place - 1] != "search"):
            return False
    return True


def extract_answer(response: str) -> str | None:
    """The text of the last complete `<answer>…</answer>`, stripped, or None. What the retriever wrote (information
    blocks) is not looked at: a document must not answer in the model's stead."""
    own = _without_information(response)
    start = own.rfind("<answer>", 0, max(own.rfind("</answer>"), 0))
    if start < 0:
        return None
    return own[start + len("<answer>") : own.find("</answer>", start)].strip()


def _without_information(response: str) -> str:
    """The response without its complete information blocks, in time linear in its length."""
    kept, place = [], 0
    while (start := response.find("<information>", place)) >= 0:
        end = response.find("</information>", start)
        if end < 0:
            break
        kept.append(response[place:start])
        place = end + len("</information>")
    return " ".join([*kept, response[place:]])


def _content(response: str, kind: str, start: int, end: int) -> str:
    return response[start + len(kind) + 2 : end - len(kind) - 3]


def _blocks(response: str) -> list[tuple[str, int, int]] | None:
    """(kind, start, end) of each block in order, or None when tags do not balance or nest."""
    blocks = []
    opened: tuple[str, int] | None = None
    for tag in TAG.finditer(response):
        closing, kind = bool(tag[1]), tag[2]
        if opened is not None and opened[0] == "information" and not (closing and kind == "information"):
            continue
        if not closing:
            if opened is not None:
                return None
            opened = (kind, tag.start())
        else:
            if opened is None or opened[0] != kind:
                return None
            blocks.append((kind, opened[1], tag.end()))
            opened = None
    return None if opened is not None else blocks
