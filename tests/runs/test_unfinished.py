"""A run at work: what it tells, what its page shows, and what a run that was stopped leaves."""

import itertools
import os
import re
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from taskvec.runs import unfinished
from taskvec.runs.events import TRAINING, Begun, Done, Event, Finished, Part, Told, Trained
from taskvec.runs.experiment import load_experiment
from taskvec.runs.manifest import read_run
from taskvec.runs.report import page_of, tables_of, title_of
from taskvec.runs.runner import Runner
from taskvec.runs.standing import Standing
from taskvec.runs.unfinished import LivePage, settled
from taskvec.studies.store import Store

EVERYTHING = """
experiment: '<b>every</b> study'
model: {model}
suite: {suite}
seeds: [3, 5]
limits: {{train: 32, validation: 12, test: 12}}
training: {{lr: 2e-3, steps: 2, batch_size: 8, validations: 1}}
regimes: {{post-hoc: {{}}, full: {{}}, tangent: {{}}}}
search: {{step: 0.5, coarse: 2, limit: 1}}
addition: {{subsets: pairs}}
methods: {{rules: [ties], coefficient: default}}
joint: {{regimes: [full]}}
atm: {{rounds: [1, 2], regimes: [full]}}
library: {{k: 2, regimes: [full]}}
layers: {{by: first-order, regimes: [full]}}
negation: {{targets: [pets]}}
analogies: [{{a: number, b: pets, c: taste, target: pets}}]
disentanglement: {{pairs: [[pets, taste]], grid: {{points: 3}}, samples: 5}}
regularised: true
"""


@dataclass
class Kept:
    """What a run told, and the page after every part."""

    events: list[Event] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)
    read_back: list[list[str]] = field(default_factory=list)


def follow(page: LivePage, kept: Kept, folder: Path) -> Told:
    def told(event: Event) -> None:
        kept.events.append(event)
        page(event)
        if isinstance(event, Finished):
            assert page.results is not None
            kept.tables.append([table.markdown() for table in tables_of(page.results)])
            kept.pages.append((folder / "report.html").read_text())
            kept.read_back.append([table.markdown() for table in tables_of(read_run(folder))])

    return told


@pytest.fixture(scope="module")
def at_work(
    tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Kept]:
    """A run with two seeds, and what was there after every part; never finished by a report."""
    folder = tmp_path_factory.mktemp("at-work")
    path, run, kept = folder / "every.yaml", folder / "run", Kept()
    path.write_text(EVERYTHING.format(model=tiny_model, suite=tiny_suite))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished, "_PAUSE", 0.0)
        patch.setattr(unfinished, "_SHARE", 0)
        store = Store(run)
        with store.locked(), LivePage(run, "taskvec run 'it is.yaml' -o run") as page:
            Runner(*load_experiment(path), store).run(follow(page, kept, run))
    return folder, kept


def test_the_page_is_there_from_the_first_results_on_and_says_how_far_the_run_is(
    at_work: tuple[Path, Kept],
) -> None:
    pages = at_work[1].pages
    counts = [re.search(r"(\d+) of (\d+) results were there", page) for page in pages]
    found = [(int(each[1]), int(each[2])) for each in counts if each]
    assert len(found) == len(pages) > 20
    assert [done for done, _ in found] == sorted(done for done, _ in found)
    assert found[0][0] == 3 and found[-1][0] == found[-1][1]
    for page in pages:
        assert '<meta http-equiv="refresh" content="5">' in page and page.rstrip().endswith("</html>")
        assert "taskvec run &#39;it is.yaml&#39; -o run" in page
        assert "<b>every" not in page and 'src="http' not in page
    assert "Still to come" in pages[0] and title_of("negation") in pages[0]
    assert "Still to come" not in pages[-1]
    assert "zero-shot" in pages[0] and 'id="methods"' not in pages[0]
    assert 'id="methods"' in pages[-1]


def test_a_seed_is_shown_once_all_of_it_is_there(at_work: tuple[Path, Kept]) -> None:
    results = [event.results for event in at_work[1].events if isinstance(event, Finished)][-1]
    seeds = results.plan.experiment.seeds
    for part, shown in (
        (Part("negation", "tangent", 5), (3,)),
        (Part("negation", "tangent", 3), seeds),
        (Part("zero_shot"), seeds),
    ):
        assert settled(results, [part]).plan.experiment.seeds == shown
    spread = ["over 2 seeds" in "".join(tables) for tables in at_work[1].tables]
    assert spread == sorted(spread) and spread[-1]


def test_a_run_at_work_can_be_read_back(at_work: tuple[Path, Kept]) -> None:
    assert at_work[1].read_back == at_work[1].tables


def test_a_run_tells_every_result_once_and_in_order(at_work: tuple[Path, Kept]) -> None:
    first, *events = at_work[1].events
    assert isinstance(first, Begun)
    done = [event for event in events if isinstance(event, Done)]
    assert [(event.part, event.label) for event in done] == [
        (part, label) for part in first.parts for label in part.cells
    ]
    ended = [event.part for event in events if isinstance(event, Finished)]
    assert ended == [part for part in first.parts if part.study != TRAINING]
    last = [event.part.study for event in events if isinstance(event, Finished) and event.last]
    assert len(last) == len(set(last)) == len({part.study for part in ended})
    assert last.index("methods") < last.index("negation")
    trained = [event for event in events if isinstance(event, Trained)]
    assert [(event.task, event.regime) for event in trained[:4]] == [
        ("pets", "full"),
        ("taste", "full"),
        ("number", "full"),
        ("pets", "tangent"),
    ]
    assert all(0 <= event.before <= 1 and 0 <= event.after <= 1 for event in trained)


def test_a_run_that_is_on_record_leaves_the_page_as_it_is(at_work: tuple[Path, Kept], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(at_work[0], tmp_path / "again"))
    (folder / "run" / "report.html").write_text("the page")
    store, events = Store(folder / "run"), list[Event]()
    with store.locked(), LivePage(folder / "run", "taskvec run") as page:

        def told(event: Event) -> None:
            events.append(event)
            page(event)

        Runner(*load_experiment(folder / "every.yaml"), store).run(told)
    assert (folder / "run" / "report.html").read_text() == "the page"
    assert all(event.seconds is None for event in events if isinstance(event, Done))


def test_a_run_that_ends_early_leaves_a_page_that_stands_still(
    at_work: tuple[Path, Kept], tmp_path: Path
) -> None:
    page = LivePage(tmp_path, "taskvec demo -o 'a b'")
    with pytest.raises(KeyboardInterrupt), page:
        for event in at_work[1].events[:30]:
            page(event)
        raise KeyboardInterrupt
    shown = (tmp_path / "report.html").read_text()
    assert "refresh" not in re.sub(r"<script>.*?</script>", "", shown, flags=re.DOTALL)
    assert "The run was stopped; <code>taskvec demo -o &#39;a b&#39;</code> goes on" in shown


def test_ctrl_c_while_a_page_is_made_waits_for_it(
    at_work: tuple[Path, Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()

    def slow(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        made.append("page")
        return page_of(*given)

    monkeypatch.setattr(unfinished, "page_of", slow)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), LivePage(tmp_path, "taskvec run it.yaml") as page:
        for event in at_work[1].events:
            page(event)
    assert made == ["page", "page"]  # of the first part, and as it stays
    assert "The run was stopped" in (tmp_path / "report.html").read_text()
    assert signal.getsignal(signal.SIGINT) is before


def test_pages_are_seconds_apart(
    at_work: tuple[Path, Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [0.0], list[float]()
    monkeypatch.setattr(unfinished, "monotonic", lambda: clock[0])
    page = LivePage(tmp_path, "")
    monkeypatch.setattr(page, "_write", lambda refresh: written.append(clock[0]))
    for event in at_work[1].events:
        clock[0] += 1.0
        page(event)
    gaps = [after - before for before, after in itertools.pairwise(written)]
    assert len(written) > 5 and min(gaps) >= 5


def test_a_page_that_cannot_be_written_is_said_once_and_ends_no_run(
    at_work: tuple[Path, Kept], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.html").mkdir()
    with LivePage(tmp_path, "") as page:
        for event in at_work[1].events:
            page(event)
    assert caplog.text.count("the page waits for the end of the run") == 1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([2.0, 2.0, 2.0], 10.0),
        ([2.0, 2.0], None),  # two are no kind
        ([1.0, 9.0, 2.0], None),  # they differ too much to tell of another
        ([None, None, None], None),  # on record, which took no time
        ([3.0, 4.0, 5.0], 20.0),
    ],
)
def test_what_is_left_is_known_from_results_of_the_same_kind_alone(
    seconds: list[float | None], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.runs import standing
    from taskvec.runs.events import Working

    clock = Clock()
    monkeypatch.setattr(standing, "monotonic", clock)
    part = Part("addition", "full", 0, tuple("abcdefgh"))
    stands = Standing()
    stands(Begun("it", [part]))
    for place, each in enumerate(seconds):
        stands(Done(part, part.cells[place], place + 1, {}, each))
    rest = 5 if len(seconds) == 3 else 6
    stands(Working(part, part.cells[len(seconds)]))
    assert stands.left() == (None if expected is None else pytest.approx(expected * rest / 5))
    clock.now += 1.0
    assert stands.left() == (None if expected is None else pytest.approx(expected - 1.0))


def test_another_seed_tells_how_long_unlike_results_take(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Part("methods", "full", seed, ("mean", "wudi")) for seed in (0, 1))
    other = Part("atm", "full", 1, ("atm",))
    stands = Standing()
    stands(Begun("it", [first, second, other]))
    stands(Done(first, "mean", 1, {}, 1.0))
    assert stands.left([second]) is None
    stands(Done(first, "wudi", 2, {}, 60.0))
    left: Any = stands.left([second])
    assert left == pytest.approx(61.0, abs=0.5)
    assert stands.left() is None
