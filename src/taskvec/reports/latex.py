"""Tables for LaTeX, with booktabs, to paste into a paper."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from taskvec.reports.tables import Shown, Table

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **dict.fromkeys("\n\t\r\u00a0\u2028\u2029", " "),
}

_MATHS = {
    **{"±": r"\pm", "−": "-", "×": r"\times", "·": r"\cdot", "÷": r"\div", "√": r"\surd", "°": r"^\circ"},
    **{"≤": r"\leq", "≥": r"\geq", "≈": r"\approx", "≠": r"\neq", "∞": r"\infty", "∑": r"\sum", "‖": r"\|"},
    **{"→": r"\to", "←": r"\leftarrow", "↑": r"\uparrow", "↓": r"\downarrow", "∈": r"\in", "∇": r"\nabla"},
    **{"∂": r"\partial", "⟨": r"\langle", "⟩": r"\rangle", "∥": r"\|", "∘": r"\circ", "ℓ": r"\ell"},
    **{"²": "^2", "³": "^3", "¹": "^1", "₀": "_0", "₁": "_1", "₂": "_2"},
}

_LETTERS = {
    **{"–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\ldots{}"},
    **{"‘": "`", "’": "'", "“": "``", "”": "''", "„": ",,"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "å": r"\aa{}", "Å": r"\AA{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ı": r"\i{}", "§": r"\S{}"},
}

_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u"},
    **{"\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c"},
}

_LATIN = {"ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K"} | {
    **{"MU": "M", "NU": "N", "OMICRON": "O", "RHO": "P", "TAU": "T", "CHI": "X"}
}
"""Greek capitals that look like Latin ones."""


def latex_of(table: Table, caption: str, label: str) -> str:
    """A table environment; the best of what a table compares is bold, its note stands below.

    Columns that a page folds are left out.

    Args:
        label: behind ``tab:``, without what LaTeX would stumble over.
    """
    heads = _unfolded(table, list(table.shown_heads()))
    columns = "".join("l" if "words" in (head.classes or "") else "r" for head in heads)
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape(caption)}.}}",
            rf"\label{{tab:{_label(label)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row([escape(head.text) for head in heads]),
            r"\midrule",
            *_body(table, len(heads)),
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip{{\footnotesize {escape(table.note)}}}"] if table.note else []),
            r"\end{table}",
            "",
        ]
    )


def _body(table: Table, width: int) -> Iterator[str]:
    for place, (head, rows) in enumerate(table.shown_groups()):
        if place:
            yield r"\addlinespace"
        if head:
            yield rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(head)}}}}} \\"
        yield from (_row([_cell(cell) for cell in _unfolded(table, row)]) for row in rows)


def _unfolded(table: Table, cells: Sequence[Shown]) -> list[Shown]:
    return [cell for place, cell in enumerate(cells) if place not in table.folded]


def escape(text: str) -> str:
    r"""A text as LaTeX shows it with no further package; ``[U+4E2D]`` for a character that it has no way to.

    >>> print(escape("α_1 ± 5 % {é}"))
    $\alpha$\_1 $\pm$ 5 \% \{\'{e}\}
    """
    return "".join(map(_escaped, unicodedata.normalize("NFC", text))).replace("--", "-{}-")


def _escaped(character: str) -> str:
    if known := _SPECIAL.get(character, _LETTERS.get(character)):
        return known
    if character in _MATHS:
        return f"${_MATHS[character]}$"
    if character.isascii():
        return character if character.isprintable() else ""
    if unicodedata.category(character) == "Cf":  # directions and joins, which nobody sees
        return ""
    return _greek(character) or _accented(character) or f"[U+{ord(character):04X}]"


def _greek(character: str) -> str:
    found = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (FINAL )?(\w+)", unicodedata.name(character, ""))
    if not found:
        return ""
    case, final, name = found.groups()
    if case == "CAPITAL":
        return _LATIN.get(name, f"$\\{'Lambda' if name == 'LAMDA' else name.title()}$")
    small = {"LAMDA": "lambda", "OMICRON": "o"}.get(name, name.lower())
    return "o" if small == "o" else f"$\\{'var' if final else ''}{small}$"


def _accented(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    if len(parts) != 2 or not parts[0].isascii() or parts[1] not in _ACCENTS:
        return ""
    return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"


def _cell(cell: Shown) -> str:
    text = escape(cell.text)
    return rf"\textbf{{{text}}}" if "best" in (cell.classes or "").split() else text


def _row(cells: Sequence[str]) -> str:
    r"""Cells; a row that opens with ``[`` or ``*`` would be read as an argument of the ``\\`` before it."""
    opening = "{}" if cells[0][:1] in ("[", "*") else ""
    return opening + " & ".join(cells) + r" \\"


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"
