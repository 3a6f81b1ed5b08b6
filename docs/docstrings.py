"""An extension of Griffe, which reads the docstrings for the reference.

Doctests in the text become blocks of code, and a line `a, b: ...` of the arguments is repeated for
`a` and for `b`, so that their names are compared with those of the signature.
"""

import re

import griffe

# A continued text is indented further than the names.
ENTRY = re.compile(
    r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+):(?P<text> .*(?:\n(?P=indent) +.*)*)",
    re.MULTILINE,
)
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent) *\S.*)*", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes|Returns|Raises):\n(?:(?: +.*)?\n?)*", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring of the source as one that Griffe and Markdown understand."""

    def separate(match):
        names = match["names"].split(", ")
        return "\n".join(f"{match['indent']}{name}:{match['text']}" for name in names)

    def fenced(match):
        indent = match["indent"]
        return f"{indent}```pycon\n{match[0]}\n{indent}```"

    text = SECTION.sub(lambda section: ENTRY.sub(separate, section[0]), text)
    return DOCTEST.sub(fenced, text)


class Docstrings(griffe.Extension):
    """Apply `markdown` to every docstring."""

    def on_object(self, *, obj, **_) -> None:
        """Rewrite a docstring once, when its object has been read."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
