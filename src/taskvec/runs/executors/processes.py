"""Workers in processes on this machine."""

from collections.abc import Iterable, Sequence

from taskvec.processes import Gone, Process, heard
from taskvec.runs.executors.messages import Message, Setup
from taskvec.runs.executors.spread import Link, Spread


class Here:
    """The pool of such processes."""

    def start(self, number: int, setup: Setup) -> Process:
        """A new worker."""
        return Process(number, "taskvec.runs.executors.worker:serve", setup)

    def wait(self, links: Sequence[Link]) -> Iterable[tuple[Link, Message | Gone]]:
        """What some workers say, once at least one of them says something or is gone."""
        return heard([link for link in links if isinstance(link, Process)])


def processes(count: int) -> Spread:
    """Workers in processes on this machine, as many as are said; each holds the model."""
    return Spread(Here(), count)
