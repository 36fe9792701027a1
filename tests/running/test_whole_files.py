import pytest

from nnunet_selma.running.whole_files import whole_file


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
