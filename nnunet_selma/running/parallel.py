"""Many independent tasks in a few processes, with one progress bar, and an end that leaves nothing running."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import wait
from queue import Empty
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import Progress, Result, Task, Work, silent

_POLL_SECONDS = 0.2
_steps_of_this_worker: Any = None  # the queue a worker reports its steps to; set when the worker starts


def run_tasks(
    work: Work[Task, Result],
    tasks: Sequence[Task],
    *,
    steps: int,
    workers: int,
    label: str,
    progress: Progress[Any] = silent,
    scheduler: str | None = None,
) -> list[Result]:
    """Do every task, up to `workers` at a time, each in a process of its own; returns the results in the order of the tasks.

    Tasks and results are pickled, so they hold paths and numbers, not voxels. With one worker, or one task, no process is started.

    Args:
        work: a function at the top of a module.
        tasks: what to give it.
        steps: how many steps all tasks have together, for the progress bar.
        workers: most processes at a time.
        label: what the progress bar is called.
        progress: shows the steps.
        scheduler: of a Dask cluster (`cluster.connect_cluster`) that does them instead of processes here.

    Raises:
        SelmaError: from a task; the others are stopped.
    """
    bar = iter(progress(range(steps), label))
    results: list[Result] = []
    if scheduler is not None:
        counts = _on_cluster(work, tasks, results, scheduler)
    elif min(workers, len(tasks)) < 2:
        counts = _here(work, tasks, results)
    else:
        counts = _in_processes(work, tasks, results, workers)
    with closing(counts):  # stops the processes where showing progress is interrupted
        for count in counts:
            for _ in range(count):
                next(bar, None)
    for _ in bar:
        pass
    return results


def _here(work: Work[Task, Result], tasks: Sequence[Task], results: list[Result]) -> Generator[int, None, None]:
    for task in tasks:
        results.append((yield from work(task)))


def _on_cluster(
    work: Work[Task, Result], tasks: Sequence[Task], results: list[Result], scheduler: str
) -> Generator[int, None, None]:
    from nnunet_selma.running.cluster import connect_cluster, submit_tasks

    done: dict[int, Result] = {}
    with connect_cluster(scheduler) as client:
        for number, steps, result in submit_tasks(client, work, tasks):
            done[number] = result
            yield steps
    results.extend(done[number] for number in range(len(tasks)))


def _in_processes(
    work: Work[Task, Result], tasks: Sequence[Task], results: list[Result], workers: int
) -> Generator[int, None, None]:
    # forking a process that has threads (a progress bar has one) may hang the child
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    steps = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (steps,))
    try:
        futures = [pool.submit(_do, work, task) for task in tasks]
        while not all(future.done() for future in futures):
            yield from _reported(steps)
            _raise_first(futures)
        _raise_first(futures)
        yield from _reported(steps)
        results.extend(future.result() for future in futures)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise SelmaError(
            "a worker process ended all of a sudden, most likely for want of memory; run the command again with fewer --workers; what was finished and kept is not done again"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()


def _reported(steps: Any) -> Iterator[int]:
    """Steps that workers have reported; waits a moment for the first."""
    try:
        yield steps.get(timeout=_POLL_SECONDS)
        while True:
            yield steps.get_nowait()
    except Empty:
        return


def _raise_first(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()) is not None:
            raise error


def _start_worker(steps: Any) -> None:
    global _steps_of_this_worker
    _steps_of_this_worker = steps
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too; they have nothing to say about it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on writing beside the run that continues it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(work: Work[Task, Result], task: Task) -> Result:
    steps = work(task)
    while True:
        try:
            _steps_of_this_worker.put(next(steps))
        except StopIteration as end:
            result: Result = end.value
            return result
