"""Tasks on a Dask cluster that runs already, or on processes of this machine (an extra: `pip install nnunet-selma[brains]`)."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import ResultT, TaskT, Work, do_task

_LOCAL = "local:"


@contextmanager
def connect_cluster(scheduler: str) -> Iterator[Any]:
    """Yield a client of a Dask scheduler.

    Args:
        scheduler: address of a scheduler that runs (`tcp://host:8786`), or `local:N`, which starts N worker processes here.

    Raises:
        SelmaError: Dask is not installed, the address is invalid, or no scheduler answers there.
    """
    try:
        distributed: Any = import_module("distributed")  # has types in part only
    except ImportError as error:
        raise SelmaError("--scheduler needs Dask; install it with: pip install 'nnunet-selma[brains]'") from error
    if scheduler.startswith(_LOCAL):
        count = workers_here(scheduler)
        cores = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores}
        with (
            distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                dashboard_address=None,
                memory_limit=0,
                silence_logs=40,
                env={**environment, **_forwarded()},
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise SelmaError(
            f"--scheduler {scheduler}: no scheduler answers there ({error}); start dask-scheduler, or take local:N"
        ) from error
    with client:
        yield client


def workers_here(scheduler: str | None) -> int:
    """Number of worker processes that a scheduler's address starts on this machine; 1 for `tcp://…`, or where there is no scheduler.

    Raises:
        SelmaError: an address `local:…` without a number.
    """
    if scheduler is None or not scheduler.startswith(_LOCAL):
        return 1
    count = scheduler.removeprefix(_LOCAL)
    if not count.isdecimal() or int(count) < 1:
        raise SelmaError(f"--scheduler {scheduler}: write local:N with a number of worker processes, as in local:2")
    return int(count)


def _forwarded() -> dict[str, str]:
    """nnU-Net's environment variables, which a worker needs to find trainers."""
    return {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}


def submit_tasks(
    client: Any, work: Work[TaskT, ResultT], tasks: Sequence[TaskT]
) -> Generator[tuple[int, int, ResultT], None, None]:
    """Submit tasks; yields the place, steps and result of each as it finishes.

    The task of a worker that dies is done again by another one. When the generator ends, tasks that are left are cancelled.

    Raises:
        SelmaError: from a task, or because four workers died of the same task.
    """
    distributed: Any = import_module("distributed")
    futures = {client.submit(_do_counted, work, task, pure=False): number for number, task in enumerate(tasks)}
    try:
        for future in distributed.as_completed(list(futures)):
            try:
                steps, result = future.result()
            except distributed.KilledWorker as error:
                raise SelmaError(
                    "workers ended all of a sudden, most likely for want of memory; give them more and run the command again, which "
                    "continues from here"
                ) from error
            number = futures.pop(future)
            future.release()  # otherwise Dask does the task again if its worker dies later
            yield number, steps, result
    finally:
        client.cancel(list(futures))


def _do_counted(work: Work[TaskT, ResultT], task: TaskT) -> tuple[int, ResultT]:
    """Do a task to its end; returns its steps and its result."""
    steps: list[int] = []
    result = do_task(work, task, steps.append)
    return sum(steps), result
