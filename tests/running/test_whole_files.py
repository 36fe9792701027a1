import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file, whole_folder


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_whole_or_as_it_was(shared, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write(fails):
        with whole_file(path, shared=shared) as partial:
            partial.write_text("after")
            if fails:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write(fails=True)
    assert path.read_text() == "before"
    write(fails=False)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "a.txt.partial").write_text("half")
    with whole_file(tmp_path / "a.txt") as partial:
        assert not partial.exists()
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_processes_that_share_a_file_do_not_share_the_temporary_one(tmp_path):
    with whole_file(tmp_path / "a.txt", shared=True) as first, whole_file(tmp_path / "a.txt", shared=True) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.txt").read_text() == "1"


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_is_whole_or_as_it_was(empty, tmp_path):
    target = tmp_path / "a" / "b"
    if empty:
        target.mkdir(parents=True)

    def write(fails):
        with whole_folder(target) as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / "c.txt").write_text("c")
            assert not target.exists() or not any(target.iterdir())
            if fails:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write(fails=True)
    assert list(target.parent.iterdir()) == ([target] if empty else [])
    write(fails=False)
    assert list(target.parent.iterdir()) == [target]
    assert (target / "deep" / "c.txt").read_text() == "c"
    assert target.stat().st_mode == (target / "deep").stat().st_mode  # readable by those whom the umask lets read


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_what_is_there_is_not_replaced_by_a_folder(kind, tmp_path):
    target = tmp_path / "a"
    mine = target if kind == "a file" else target / "mine.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(SelmaError, match=r"^\S+/a: exists already; remove it"), whole_folder(target):
        pytest.fail("the body ran")
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_two_folders_at_once_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "a"

    def write_both():
        with whole_folder(target) as late, whole_folder(target) as early:  # the inner one ends first
            (late / "late.txt").write_text("late")
            (early / "early.txt").write_text("early")

    with pytest.raises(SelmaError, match="exists already"):
        write_both()
    assert [path.name for path in target.iterdir()] == ["early.txt"]
    assert list(tmp_path.iterdir()) == [target]
