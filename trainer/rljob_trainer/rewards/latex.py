"""LaTeX of short answers as plain text: `\\frac{1}{2}` is `1/2`, `\\sqrt{2}` is `sqrt(2)`."""

import re

_SYMBOLS = (
    {"\\cdot": "*", "\\times": "*", "\\div": "/", "\\pi": "pi", "\\infty": "inf", "\\cup": "U", "\\pm": "±"}
    | {"\\le": "<=", "\\leq": "<=", "\\ge": ">=", "\\geq": ">=", "\\ne": "!=", "\\neq": "!=", "\\{": "{", "\\}": "}"}
    | {"\\,": " ", "\\;": " ", "\\:": " ", "\\!": "", "\\ ": " ", "\\quad": " ", "\\left": "", "\\right": ""}
)
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.", re.DOTALL)
_UNWRAPPED = ("\\text", "\\mathrm", "\\mathbf", "\\textbf", "\\mbox", "\\mathbb", "\\operatorname", "\\overline")
_CHARACTERS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*", "÷": "/"})
_DEEPEST = 40


def plain(text: str) -> str:
    """The text with fractions, roots and common symbols written out; commands it does not know lose their backslash."""
    return _plain(text, 0).translate(_CHARACTERS).strip()


def _plain(text: str, depth: int) -> str:
    parts, place = [], 0
    while (match := _COMMAND.search(text, place)) is not None and depth < _DEEPEST:
        parts.append(text[place : match.start()])
        command, place = match[0], match.end()
        if command in ("\\frac", "\\dfrac", "\\tfrac", "\\cfrac"):
            top, place = _argument(text, place)
            bottom, place = _argument(text, place)
            # The space keeps a mixed number's parts apart: 7\frac{3}{4}.
            parts.append(f" {_factor(_plain(top, depth + 1))}/{_factor(_plain(bottom, depth + 1))}")
        elif command == "\\sqrt":
            degree = ""
            if text[place : place + 1] == "[" and (end := text.find("]", place)) > 0:
                degree, place = text[place + 1 : end], end + 1
            inner, place = _argument(text, place)
            inner = _plain(inner, depth + 1)
            parts.append(f"({inner})**(1/{_factor(degree)})" if degree else f"sqrt({inner})")
        elif command in _UNWRAPPED:
            inner, place = _argument(text, place)
            parts.append(_plain(inner, depth + 1))
        else:
            parts.append(_SYMBOLS.get(command, command[1:]))
    return "".join([*parts, text[place:]])


def _argument(text: str, place: int) -> tuple[str, int]:
    """The argument of a command at `place`, in braces or one character, and where the text goes on."""
    while text[place : place + 1] == " ":
        place += 1
    if text[place : place + 1] != "{":
        return text[place : place + 1], place + 1
    depth = 0
    for end in range(place, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[place + 1 : end], end + 1
    return text[place + 1 :], len(text)


def _factor(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"[\w.]*", text) else f"({text})"
