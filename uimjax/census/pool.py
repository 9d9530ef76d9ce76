"""Stretches of documents counted by several processes, some at a time."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from uimjax.census import counting
from uimjax.census.counting import Looked
from uimjax.corpora.texts import Text
from uimjax.errors import UsageError

_LOOK: list[Looked] = []  # of a process that counts


def count_all(todo: Iterable[tuple[Sequence[Text], Path]], look: Looked, workers: int) -> None:
    """Count each stretch into its files; of `workers` processes, 1: this one."""
    if workers == 1:
        for held, path in todo:
            counting.stretch(held, look, path)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # threads of JAX do not survive a fork
    with ProcessPoolExecutor(workers, context, _begin, (look,)) as pool:
        waiting: deque[Future[None]] = deque()
        try:
            for held, path in todo:
                waiting.append(pool.submit(_work, held, path))
                if len(waiting) > workers:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UsageError("a process that counts ended by itself: the memory may be full, or the script that "
                                 "called this has no `if __name__ == '__main__':`. Run it again with --workers 1"
                                 ) from error  # fmt: skip
            raise


def _begin(look: Looked) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    _LOOK[:] = [look]


def _work(held: Sequence[Text], path: Path) -> None:
    counting.stretch(held, _LOOK[0], path)
