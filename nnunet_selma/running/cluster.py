"""Tasks on a Dask cluster: one that runs already, or one made of processes on this machine (an extra: `pip install nnunet-selma[brains]`)."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import Result, Task, Work


@contextmanager
def connect_cluster(scheduler: str, threads: int = 1) -> Iterator[Any]:
    """A client of the scheduler at an address (`tcp://host:8786`), or of `local:N` worker processes that do so many tasks at once.

    Raises:
        SelmaError: Dask is not installed, the address is none, or nobody answers there.
    """
    try:
        distributed: Any = import_module("distributed")  # has types in part only
    except ImportError as error:
        raise SelmaError("--scheduler needs Dask; install it with: pip install 'nnunet-selma[brains]'") from error
    kind, _, rest = scheduler.partition(":")
    if kind == "local":
        if not rest.isdecimal() or int(rest) < 1:
            raise SelmaError(f"--scheduler {scheduler}: write local:N with a number of worker processes, as in local:2")
        count = int(rest)
        cores = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores}
        with (
            distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=threads,
                dashboard_address=None,
                memory_limit=0,
                silence_logs=40,
                env={**environment, **_forwarded()},
            ) as own,
            distributed.Client(own) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise SelmaError(
            f"--scheduler {scheduler}: nobody answers there ({error}); start dask-scheduler, or take local:N"
        ) from error
    with client:
        yield client


def _forwarded() -> dict[str, str]:
    """nnU-Net's variables, which a worker needs to find trainers."""
    return {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}


def submit_tasks(
    client: Any, work: Work[Task, Result], tasks: Sequence[Task]
) -> Generator[tuple[int, int, Result], None, None]:
    """Submit tasks, and yield the number, steps and result of each when it finishes; a task of a worker that dies is done by another one.

    Raises:
        SelmaError: from a task, or a task that four workers died of; the other tasks are cancelled.
    """
    distributed: Any = import_module("distributed")
    futures = {client.submit(_whole, work, task, pure=False): number for number, task in enumerate(tasks)}
    try:
        for future in distributed.as_completed(list(futures)):
            try:
                steps, result = future.result()
            except distributed.KilledWorker as error:
                raise SelmaError(
                    "workers ended all of a sudden, most likely for want of memory; give them more and run the command again, which goes "
                    "on from here"
                ) from error
            number = futures.pop(future)
            future.release()  # or it would be done again where the worker that did it dies later
            yield number, steps, result
    finally:
        client.cancel(list(futures))


def _whole(work: Work[Task, Result], task: Task) -> tuple[int, Result]:
    """Do a task to its end; returns its steps and its result."""
    steps, doing = 0, work(task)
    while True:
        try:
            steps += next(doing)
        except StopIteration as end:
            return steps, end.value
