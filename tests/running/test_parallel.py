import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.cluster import connect_cluster, submit_tasks
from nnunet_selma.running.parallel import run_tasks


def count(task):
    for _ in range(task):
        yield 1
    return (task, os.getpid())


def fail(task):
    yield 1
    if task == 2:
        raise SelmaError(f"task {task} cannot be done")
    time.sleep(30)


def die(task):
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks_and_every_step_is_shown(workers):
    seen = []

    def progress(items, label):
        for item in items:
            seen.append((label, item))
            yield item

    results = run_tasks(count, [3, 1, 2], steps=6, workers=workers, label="counting", progress=progress)
    assert [task for task, _ in results] == [3, 1, 2]
    assert seen == [("counting", i) for i in range(6)]
    assert all((pid == os.getpid()) == (workers == 1) for _, pid in results)


def test_a_cluster_gives_the_same():
    pytest.importorskip("distributed")
    seen = []
    results = run_tasks(
        count,
        [3, 1, 2],
        steps=6,
        workers=1,
        label="",
        progress=lambda items, _: seen.append(len(items)) or items,
        scheduler="local:2",
    )
    assert [task for task, _ in results] == [3, 1, 2]
    assert all(pid != os.getpid() for _, pid in results)
    assert seen == [6]
    with connect_cluster("local:1") as client:
        assert sorted((number, steps) for number, steps, _ in submit_tasks(client, count, [3, 1])) == [(0, 3), (1, 1)]
    with pytest.raises(SelmaError, match="task 2 cannot be done"):
        run_tasks(fail, [2], steps=1, workers=1, label="", scheduler="local:1")


@pytest.mark.parametrize(
    ("scheduler", "said"), [("local:none", "local:N"), ("tcp://127.0.0.1:9", "no scheduler answers")]
)
def test_a_scheduler_that_is_none_is_an_error_with_a_remedy(scheduler, said):
    pytest.importorskip("distributed")
    with pytest.raises(SelmaError, match=said):
        run_tasks(count, [1], steps=1, workers=1, label="", scheduler=scheduler)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_stops_the_others(workers):
    started = time.monotonic()
    with pytest.raises(SelmaError, match="task 2 cannot be done"):
        run_tasks(fail, [2, 3, 4], steps=3, workers=workers, label="")
    assert time.monotonic() - started < 25


def test_a_worker_that_is_killed_is_an_error_with_a_remedy():
    with pytest.raises(SelmaError, match="more memory free"):
        run_tasks(die, [1, 2], steps=2, workers=2, label="")


ORPHANS = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[2])
from nnunet_selma.running.parallel import run_tasks
from orphan_task import touch
if __name__ == "__main__":
    run_tasks(touch, [sys.argv[1] + "/a", sys.argv[1] + "/b"], steps=2, workers=2, label="")
"""
TASK = """
import pathlib, time
def touch(path):
    while True:
        pathlib.Path(path).write_text(str(time.monotonic()))
        time.sleep(0.05)
        yield 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path):
    (tmp_path / "orphan_task.py").write_text(TASK)
    (tmp_path / "main.py").write_text(ORPHANS)
    with subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path), str(tmp_path)]) as run:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "a").is_file() and (tmp_path / "b").is_file()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    time.sleep(1.5)
    before = [(tmp_path / name).read_text() for name in "ab"]
    time.sleep(0.5)
    assert [(tmp_path / name).read_text() for name in "ab"] == before
