"""Tables for LaTeX: what they hold is text, whatever it is, and they compile."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from taskvec.reports.latex import escape, latex_of
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table

HOSTILE = [
    r"a_b & 50 % of #1 costs $2^3 ~ \input{/etc/passwd} {x}",
    "[0.1, 0.2]",
    "*starred*",
    "a--b---c",
    "line\nbreak\ttab\r",
    "α β τ θ ± − × → ∞ ‖ ς Ω Α",
    "é ü ñ ß ø Å š ç",
    "中文 \U0001f600 العربية",
    "\u202eabc\u0000\x1b[2J",
    '<script>alert("1")</script> `x` |y|',
    r"\end{table}\write18{rm -rf /}",
    "",
    "x" * 300,
]

COMMAND = (
    r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textendash|textemdash"
    r"|ldots|ss|ae|AE|o|O|aa|AA|l|L|oe|OE|i|S)\{\}"
)
MATHS = r"\$[\\A-Za-z0-9_^{}|-]+\$"
ACCENT = r"\\[`'^~=u.\"rHvc]\{\w\}"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_escaped_is_text_alone(text: str) -> None:
    left = re.sub(rf"{COMMAND}|{MATHS}|{ACCENT}|\\[&%$#_{{}}]|-\{{\}}-", "", escape(text))
    assert left.isascii() and not set(left) & set("\\&%$#_{}~^<>|"), left
    assert left.isprintable() and "--" not in left


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tsv_m & 5 %", r"tsv\_m \& 5 \%"),
        ("α 0.3–0.5", r"$\alpha$ 0.3\textendash{}0.5"),
        ("60.0 ± 14.1", r"60.0 $\pm$ 14.1"),
        ("−1.5", "$-$1.5"),
        ("‖τ‖", r"$\|$$\tau$$\|$"),
        ("é", r"\'{e}"),
        ("λ Λ Ο ο", r"$\lambda$ $\Lambda$ O o"),
        ("中", "[U+4E2D]"),
        ("re:.*\\.weight", r"re:.*\textbackslash{}.weight"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert escape(text) == shown


def table() -> Table:
    groups = {
        "nothing": [("sum_1", percent([0.5, 0.7]), Mean([1.0])), ("[ties]", percent([0.9]), Mean([2.0]))],
        "validation labels": [("*α*", percent([0.95]), Mean([3.0]))],
    }
    return Table.grouped(
        "Methods & more", ("", "absolute", "of β"), groups, "Per cent.", compared=[1], folded=[2]
    )


def test_a_table_is_pasted_as_it_is() -> None:
    assert latex_of(table(), "Methods & more", "Tiny α: 1").splitlines() == [
        r"\begin{table}[t]",
        r"\centering",
        r"\caption{Methods \& more.}",
        r"\label{tab:tiny-1}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & absolute \\",
        r"\midrule",
        r"\multicolumn{2}{l}{\emph{nothing}} \\",
        r"sum\_1 & 60.0 $\pm$ 14.1 \\",
        r"{}[ties] & \textbf{90.0} \\",
        r"\addlinespace",
        r"\multicolumn{2}{l}{\emph{validation labels}} \\",
        r"{}*$\alpha$* & 95.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip{\footnotesize Per cent.}",
        r"\end{table}",
    ]


def test_every_row_has_a_cell_a_column() -> None:
    rows = [(text, text, Mean([1.0])) for text in HOSTILE]
    text = latex_of(Table("x", ("", *HOSTILE[:2]), rows), "x", "x")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)&", row)) == 2 and row.endswith(r" \\") for row in body)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_hostile_tables_compile(tmp_path: Path) -> None:
    tables = [table(), Table("x", ("", "a"), [(text, text) for text in HOSTILE], " ".join(HOSTILE))]
    texts = [latex_of(each, each.title, str(number)) for number, each in enumerate(tables)]
    page = "\n".join(
        [r"\documentclass{article}\usepackage{booktabs}\begin{document}", *texts, r"\end{document}"]
    )
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
