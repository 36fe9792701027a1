import os

import pytest

from nnunet_selma.running.fingerprints import fingerprint


def same_time(path, change):
    """Change a file so that its size and its time stay as they are."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_changed_bytes_are_noticed_though_size_and_time_are_the_same(place, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(bytes(1_000_000))
    first = fingerprint(path)
    assert fingerprint(path) == first

    def change(file):
        content = bytearray(file.read_bytes())
        content[place] = 1
        file.write_bytes(content)

    same_time(path, change)
    assert fingerprint(path) != first


def test_a_folder_changes_with_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12")
    prints = {fingerprint(tmp_path)}
    same_time(tmp_path / "b", lambda file: file.write_bytes(b"34"))
    prints.add(fingerprint(tmp_path))
    os.utime(tmp_path / "a", ns=(1, 1))
    prints.add(fingerprint(tmp_path))
    (tmp_path / "a").rename(tmp_path / "c")
    prints.add(fingerprint(tmp_path))
    (tmp_path / "b").unlink()
    prints.add(fingerprint(tmp_path))
    assert len(prints) == 5


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw.gz")])
def test_voxels_beside_a_header_count_with_it(header, voxels, tmp_path):
    (tmp_path / header).write_text("header")
    (tmp_path / voxels).write_bytes(b"12")
    first = fingerprint(tmp_path / header)
    same_time(tmp_path / voxels, lambda file: file.write_bytes(b"34"))
    assert fingerprint(tmp_path / header) != first
