"""The page of run folders: of one its own, of several what they have in common and what not."""

from collections.abc import Sequence
from dataclasses import replace

from taskvec.reports.block import Paragraph
from taskvec.reports.page import Page, Section
from taskvec.runs.comparison import aligned, alike
from taskvec.runs.examples import example_blocks
from taskvec.runs.report import page_of, sections_of
from taskvec.runs.several import Run


def page_of_runs(runs: Sequence[Run], title: str | None = None) -> Page:
    """One page of one or several runs. Raises: CorruptFile."""
    page = _own(runs[0]) if len(runs) == 1 else _side_by_side(runs)
    return replace(page, title=title) if title else page


def _own(run: Run) -> Page:
    """The page that the run itself leaves, without figures that are drawn into files."""
    examples = {"inspect": example_blocks(run.results, run.folder)}
    page = page_of(run.results, examples, sections_of(run.results, run.folder))
    return replace(page, description=" ".join(filter(None, (_unfinished([run]), page.description))))


def _side_by_side(runs: Sequence[Run]) -> Page:
    labels = [run.label for run in runs]
    pages = [page_of(run.results, {}) for run in runs]
    blocks = aligned(runs)
    sections = [Section("comparison", "What changed", blocks)] if blocks else []
    for number, (run, page) in enumerate(zip(runs, pages, strict=True), start=1):
        first = page.overview or [block for section in page.sections[:1] for block in section.blocks]
        lead = [Paragraph(page.lead)] if page.lead else []
        sections.append(Section(f"run-{number}", run.label, [*lead, *first]))
    return Page(
        title=", ".join(labels) if len(labels) < 4 else f"{len(labels)} runs",
        description=_unfinished(runs),
        lead=_lead(runs),
        sections=sections,
        settings={run.label: page.settings for run, page in zip(runs, pages, strict=True)},
        footer="Every number comes from records.jsonl in the folders of the runs. `taskvec report RUN` makes "
        "the page of one of them, with all its studies.",
    )


def _unfinished(runs: Sequence[Run]) -> str:
    """What a reader must know of runs that are at work or were stopped."""
    left = [run.label for run in runs if not run.finished]
    return f"Unfinished, so that results are missing: {', '.join(left)}." if left else ""


def _lead(runs: Sequence[Run]) -> str:
    named = f"{len(runs)} runs side by side"
    if alike(runs):
        tasks = len(runs[0].tasks)
        return f"{named}, on the same {tasks} task{'s' if tasks > 1 else ''}; changes are to {runs[0].label}."
    return (
        f"{named}, of different tasks or metrics, so that their figures do not compare and are not aligned."
    )
