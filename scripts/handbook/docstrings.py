"""An extension of griffe, which reads docstrings for the site: what is one sentence there stays one.

It takes ``Raises: InputError if …`` for the title of a section. It runs where taskvec is not installed.
"""

import re

from griffe import Extension, Object

SENTENCE = re.compile(r"^(Raises|Returns|Source|Yields): (\S.*(?:\n[ ]+\S.*)*)", re.MULTILINE)


class Sentences(Extension):  # type: ignore[misc]  # griffe is not where types are checked
    """Make a paragraph of each such sentence."""

    def on_object(self, *, obj: Object, **rest: object) -> None:
        """Change the docstring of anything that has one."""
        if obj.docstring is not None:
            obj.docstring.value = SENTENCE.sub(_paragraph, obj.docstring.value)


def _paragraph(found: re.Match[str]) -> str:
    return f"\n**{found[1]}:** {' '.join(found[2].split())}\n"
