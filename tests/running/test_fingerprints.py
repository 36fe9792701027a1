import os
import shutil
from dataclasses import replace
from unittest.mock import ANY

import pytest

from nnunet_selma.running import fingerprints
from nnunet_selma.running.fingerprints import contents, fingerprint


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


def test_contents_are_the_same_for_a_copy_and_after_a_touch(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("1.tif", "2.tif"):
        (folder / name).write_bytes(name.encode() * 100)
    first = contents(folder)
    shutil.copytree(folder, tmp_path / "b")
    os.utime(tmp_path / "b" / "1.tif", ns=(1, 1))
    copy = contents(tmp_path / "b")
    assert copy.times != first.times
    assert not copy.differs(first)
    assert not copy.may_differ(first)  # every byte was compared
    shutil.copy(folder / "1.tif", tmp_path / "other.tif")
    assert contents(tmp_path / "other.tif") == replace(contents(folder / "1.tif"), times=ANY)


@pytest.mark.parametrize("place", [0, 333_333, 999_999])
def test_every_byte_counts_in_the_contents_of_small_files(place, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(bytes(1_000_000))
    first = contents(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1")
    assert contents(path).differs(first)


def test_names_in_a_folder_and_sizes_count_in_its_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"")
    seen = [contents(tmp_path).hash]
    (tmp_path / "a").rename(tmp_path / "c")
    seen.append(contents(tmp_path).hash)
    (tmp_path / "b").unlink()
    seen.append(contents(tmp_path).hash)
    (tmp_path / ".DS_Store").write_bytes(b"left by a system")
    assert contents(tmp_path).hash == seen[-1]
    assert len(set(seen)) == 3


def test_large_contents_are_sampled_and_their_times_make_them_uncertain(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE_BYTES", 10_000)
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(10_000_000))
    first = contents(path)
    assert not first.whole
    os.utime(path, ns=(1, 1))
    touched = contents(path)
    assert not touched.differs(first)
    assert touched.may_differ(first)
    for place in (0, 9_999_999):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        assert contents(path).differs(first)


def test_the_voxels_of_a_header_count_in_its_contents(tmp_path):
    (tmp_path / "a.mhd").write_text("header")
    (tmp_path / "a.raw").write_bytes(b"12")
    first = contents(tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(b"34")
    assert contents(tmp_path / "a.mhd").differs(first)
    (tmp_path / "a.raw").write_bytes(b"12")
    assert not contents(tmp_path / "a.mhd").differs(first)


@pytest.mark.parametrize("changed", ["a/x.xml", "b/x.h5"])
def test_files_in_several_folders_count_together(changed, tmp_path):
    paths = [tmp_path / "a" / "x.xml", tmp_path / "b" / "x.h5"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"12")
    first = fingerprint(*paths)
    assert first == fingerprint(*paths) != fingerprint(paths[0])
    same_time(tmp_path / changed, lambda file: file.write_bytes(b"34"))
    assert fingerprint(*paths) != first
