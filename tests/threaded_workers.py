"""Workers in threads of this process, which start in no time and die when a test says so.

They show who makes what and when. Their figures may differ in the last bits from those of one thread, as
those of torch do now and then where several threads of a process compute at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from threading import Thread

from taskvec.processes import Gone
from taskvec.runs.executors.messages import Message, Setup
from taskvec.runs.executors.spread import Link
from taskvec.runs.executors.worker import serve


class Killed(BaseException):
    """The end of a worker: nothing that it still says is heard."""


Dies = Callable[[int, Message], bool]
"""Whether a worker dies that says something, the so many-th thing that any worker says."""


def immortal(number: int, message: Message) -> bool:
    return False


class Thready:
    """A worker in a thread."""

    def __init__(
        self, number: int, setup: Setup, said: "SimpleQueue[tuple[Thready, Message | Gone]]"
    ) -> None:
        self.name, self.dead = f"worker {number}", False
        self._said, self._answers = said, SimpleQueue[object]()
        self._thread = Thread(target=self._work, args=(setup,), daemon=True)
        self._thread.start()

    def answer(self, value: object) -> None:
        self._answers.put(value)

    def close(self) -> None:
        self.kill()
        self._thread.join(10)

    def kill(self) -> None:
        self.dead = True
        self._answers.put(None)

    def _work(self, setup: Setup) -> None:
        with suppress(Killed):
            serve(setup, self._ask)

    def _ask(self, message: Message) -> object:
        if not self.dead:
            self._said.put((self, message))
            answer = self._answers.get()
        if self.dead:
            raise Killed
        return answer


class Threads:
    """A pool of such workers.

    Args:
        dies: tells when one is killed, while it waits for an answer.
    """

    def __init__(self, dies: Dies = immortal) -> None:
        self._dies, self._numbers = dies, count(1)
        self._said: SimpleQueue[tuple[Thready, Message | Gone]] = SimpleQueue()
        self.started = 0

    def start(self, number: int, setup: Setup) -> Thready:
        self.started += 1
        return Thready(number, setup, self._said)

    def wait(self, links: Sequence[Link]) -> Iterable[tuple[Link, Message | Gone]]:
        return self._heard(links)

    def _heard(self, links: Sequence[Link]) -> Iterator[tuple[Link, Message | Gone]]:
        link, message = self._said.get(timeout=60)
        if not isinstance(message, Gone) and self._dies(next(self._numbers), message):
            link.kill()
            yield link, Gone("was ended by SIGKILL")
        elif link in links:
            yield link, message
