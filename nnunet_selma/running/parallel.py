"""Many independent tasks in a few processes with one progress bar; no process outlives the call."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import wait
from queue import Empty
from typing import Any, TypeVar

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import Progress, ResultT, TaskT, Work, do_task, silent

ItemT = TypeVar("ItemT")

_POLL_SECONDS = 0.2
_steps_of_this_worker: Any = None  # queue for the steps of a worker, set when the worker starts


def run_tasks(
    work: Work[TaskT, ResultT],
    tasks: Sequence[TaskT],
    *,
    steps: int,
    workers: int,
    label: str,
    progress: Progress[Any] = silent,
    scheduler: str | None = None,
) -> list[ResultT]:
    """Do every task in a few processes; returns the results in the order of the tasks.

    Tasks and results are pickled, so they hold paths and numbers, not voxels. With one worker, or one task, no process is started.

    Args:
        work: a function at the top of a module.
        tasks: its arguments.
        steps: number of steps of all tasks together, for the progress bar.
        workers: greatest number of processes at a time.
        label: label of the progress bar.
        progress: shows the steps.
        scheduler: Dask cluster that does the tasks instead of processes here (`cluster.connect_cluster`).

    Raises:
        SelmaError: from a task, or because a process ended; the other tasks are stopped.
    """
    bar = iter(progress(range(steps), label))
    results: list[ResultT] = []
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


def in_threads(work: Callable[[ItemT], ResultT], items: Sequence[ItemT], threads: int) -> list[ResultT]:
    """Results of a function for each item, in the order of the items, from a few threads; for work that releases Python's lock.

    An error of an item is raised, and items that have not begun by then are left out.
    """
    if min(threads, len(items)) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))


def _here(work: Work[TaskT, ResultT], tasks: Sequence[TaskT], results: list[ResultT]) -> Generator[int, None, None]:
    for task in tasks:
        results.append((yield from work(task)))


def _on_cluster(
    work: Work[TaskT, ResultT], tasks: Sequence[TaskT], results: list[ResultT], scheduler: str
) -> Generator[int, None, None]:
    from nnunet_selma.running.cluster import connect_cluster, submit_tasks

    done: dict[int, ResultT] = {}
    with connect_cluster(scheduler) as client:
        for number, steps, result in submit_tasks(client, work, tasks):
            done[number] = result
            yield steps
    results.extend(done[number] for number in range(len(tasks)))


def _in_processes(
    work: Work[TaskT, ResultT], tasks: Sequence[TaskT], results: list[ResultT], workers: int
) -> Generator[int, None, None]:
    # forking a process that has threads (a progress bar has one) may hang the child
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    steps = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (steps,))
    try:
        futures = [pool.submit(_do_in_worker, work, task) for task in tasks]
        while not all(future.done() for future in futures):
            yield from _reported(steps)
            _raise_first(futures)
        _raise_first(futures)
        yield from _reported(steps)
        results.extend(future.result() for future in futures)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise SelmaError(
            "a worker process ended all of a sudden, most likely for want of memory; finished tasks are not done again: run the command again "
            "with more memory free",
            option="with fewer --workers",
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()


def _reported(steps: Any) -> Iterator[int]:
    """Steps that workers have reported; waits 0.2 s for the first."""
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too; they end without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent was killed, so that it does not write beside the run that continues the work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do_in_worker(work: Work[TaskT, ResultT], task: TaskT) -> ResultT:
    return do_task(work, task, _steps_of_this_worker.put)
