"""N5 as tensorstore writes it, and blocks by hand where it writes none, against the arrays that were written."""

import json
import multiprocessing
import pickle
import shutil
import struct
import sys
import zlib
from itertools import product

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.cases import is_single_volume
from nnunet_selma.prediction.sources import _contents
from nnunet_selma.volumes import inventory, is_store, is_volume, missing_library, n5, open_volume, stem
from nnunet_selma.volumes.n5 import N5Volume
from tests.volumes.microscope_files import write_bdv, write_n5

pytest.importorskip("tensorstore")

SHAPE = (11, 21, 29)
BLOCK = (4, 8, 7)
SPACING = (6.0, 1.6, 1.5)
COMPRESSIONS = {
    "raw": "raw",
    "gzip": "gzip",
    "bzip2": {"type": "bzip2", "blockSize": 9},
    "xz": {"type": "xz", "preset": 6},
    "zstd": {"type": "zstd", "level": 3},
    "blosc of lz4": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
    "blosc of zstd": {"type": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2},
}


@pytest.fixture
def voxels(rng):
    """Values that compress, and fill all bits."""
    return rng.integers(0, 60000, SHAPE, dtype=np.uint16) // 1000 * 1000 + np.uint16(1)


def blocks_by_hand(dataset, voxels, block, compression, encode):
    """Write a dataset by its specification, blocks cut off at the end of the image, as the Java library writes them."""
    dataset.mkdir(parents=True)
    attributes = {
        "dimensions": voxels.shape[::-1],
        "blockSize": block[::-1],
        "dataType": voxels.dtype.name,
        **compression,
    }
    (dataset / "attributes.json").write_text(json.dumps(attributes), encoding="utf-8")
    for number in product(*(range(-(-length // edge)) for length, edge in zip(voxels.shape, block, strict=True))):
        part = voxels[tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(number, block, strict=True))]
        file = dataset.joinpath(*map(str, number[::-1]))
        file.parent.mkdir(parents=True, exist_ok=True)
        content = encode(part.astype(part.dtype.newbyteorder(">")).tobytes())
        file.write_bytes(struct.pack(">HHIII", 0, 3, *part.shape[::-1]) + content)


def lz4_stream(content):
    """A stream of LZ4 blocks of 100 bytes as lz4-java writes it: stored where it does not compress, and an empty one at the end."""
    stream = b""
    for start in range(0, len(content), 100):
        part = content[start : start + 100]
        packed = bytes(imagecodecs.lz4_encode(part, header=False))
        method, packed = (0x20, packed) if len(packed) < len(part) else (0x10, part)
        stream += b"LZ4Block" + struct.pack("<BIII", method | 6, len(packed), len(part), 0) + packed
    return stream + b"LZ4Block" + struct.pack("<BIII", 0x16, 0, 0, 0)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_datasets_of_tensorstore(tmp_path, voxels, compression, dtype):
    voxels = voxels.astype(dtype)
    write_n5(tmp_path / "s0", voxels, BLOCK, COMPRESSIONS[compression])
    volume = N5Volume(tmp_path, tmp_path / "s0")
    assert (volume.shape, volume.dtype, volume.chunk_zyx) == (SHAPE, dtype, BLOCK)
    read = volume.read()
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, voxels)


@pytest.mark.parametrize(
    ("compression", "encode"),
    [
        ({"compression": {"type": "gzip", "useZlib": True, "level": 1}}, zlib.compress),
        ({"compression": {"type": "lz4", "blockSize": 100}}, lz4_stream),
        ({"compressionType": "raw"}, bytes),  # before N5 2.0
        ({"compressionType": "lz4"}, lz4_stream),
    ],
)
@pytest.mark.parametrize("noise", [False, True])
def test_datasets_that_tensorstore_does_not_write(tmp_path, voxels, rng, compression, encode, noise):
    """Blocks that are cut off at the end of the image among them."""
    if noise:
        voxels = rng.integers(0, 65536, SHAPE, dtype=np.uint16)
    blocks_by_hand(tmp_path / "s0", voxels, BLOCK, compression, encode)
    np.testing.assert_array_equal(N5Volume(tmp_path, tmp_path / "s0").read(), voxels)


def test_blocks_cut_off_at_the_end_are_read_by_tensorstore_too(tmp_path, voxels):
    """The blocks by hand are N5 to another reader."""
    import tensorstore

    blocks_by_hand(tmp_path / "s0", voxels, BLOCK, {"compression": {"type": "raw"}}, bytes)
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(tmp_path / "s0")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result().T, voxels)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box(tmp_path, voxels, data):
    if not (tmp_path / "s0").exists():
        write_n5(tmp_path / "s0", voxels, BLOCK)
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2)))) for length in SHAPE)
    np.testing.assert_array_equal(N5Volume(tmp_path, tmp_path / "s0").read(*box), voxels[box])


def test_blocks_are_decoded_once_and_only_those_of_the_box(tmp_path, voxels, monkeypatch):
    write_n5(tmp_path / "s0", voxels, BLOCK)
    decoded = []
    monkeypatch.setattr(n5, "_decoded", lambda *args, inner=n5._decoded: decoded.append(args) or inner(*args))
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        box = (slice(3, 5), slice(8, 16), slice(0, 15))
        np.testing.assert_array_equal(N5Volume(tmp_path, tmp_path / "s0").read(*box), voxels[box])
        assert len(decoded) == 2 * 1 * 3
        decoded.clear()


def test_blocks_without_a_file_hold_0(tmp_path, voxels):
    write_n5(tmp_path / "s0", voxels, BLOCK)
    (tmp_path / "s0" / "3" / "1" / "0").unlink()  # x, y, z
    expected = voxels.copy()
    expected[0:4, 8:16, 21:28] = 0
    np.testing.assert_array_equal(N5Volume(tmp_path, tmp_path / "s0").read(), expected)


def halved(content):
    return content[: len(content) // 2]


def without_last(content):
    return content[:-3]


def emptied(content):
    return b""


def header_only(content):
    return content[:16]


def zeros(content):
    return bytes(len(content))


def of_another_mode(content):
    return b"\0\1" + content[2:]


def too_wide(content):
    return content[:4] + struct.pack(">I", 8) + content[8:]


def too_narrow(content):
    return content[:4] + struct.pack(">I", 6) + content[8:]


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "lz4"])
@pytest.mark.parametrize(
    "harm", [halved, without_last, emptied, header_only, zeros, of_another_mode, too_wide, too_narrow]
)
def test_damaged_blocks(tmp_path, voxels, compression, harm):
    if compression == "lz4":
        blocks_by_hand(tmp_path / "s0", voxels, BLOCK, {"compression": {"type": "lz4"}}, lz4_stream)
    else:
        write_n5(tmp_path / "s0", voxels, BLOCK, COMPRESSIONS[compression])
    if harm is without_last and compression in ("lz4", "bzip2", "xz"):
        harm = halved  # the last bytes of these hold no voxels
    file = tmp_path / "s0" / "1" / "2" / "0"
    file.write_bytes(harm(file.read_bytes()))
    volume = N5Volume(tmp_path / "b.xml", tmp_path / "s0")
    with pytest.raises(SelmaError, match=r"b\.xml: its block .*s0/1/2/0 cannot be read, it is cut short or damaged"):
        volume.read()
    np.testing.assert_array_equal(volume.read(slice(4, 11)), voxels[4:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dataType": "string"}, r"type string; grey values along z, y and x are needed"),
        ({"dimensions": [29, 21, 11, 2], "blockSize": [7, 8, 4, 1]}, r"the shape 2 × 11 × 21 × 29 and"),
        ({"compression": {"type": "jpeg"}}, r"is compressed by jpeg, which is not read"),
        ({"blockSize": [7, 8]}, r"attributes\.json: cannot be read"),
        ({"blockSize": [7, 8, 0]}, r"attributes\.json: cannot be read"),
        ({"dimensions": None}, r"attributes\.json: cannot be read"),
        ({"compression": "gzip"}, r"attributes\.json: cannot be read"),
    ],
)
def test_datasets_that_are_refused(tmp_path, voxels, change, sentence):
    write_n5(tmp_path / "s0", voxels, BLOCK)
    file = tmp_path / "s0" / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SelmaError, match=sentence):
        N5Volume(tmp_path, tmp_path / "s0")


@pytest.fixture
def brain(tmp_path, voxels):
    """XML of a dataset of two levels in `brain.n5`."""
    return write_bdv(tmp_path / "brain.n5", [voxels], spacing_um_zyx=SPACING, levels=2)


LOST = {
    "brain.n5": r"brain\.xml: its voxels lie in .*brain\.n5, which is missing",
    "brain.n5/setup0": r"brain\.xml: a part of it lies in .*timepoint0, which is missing or empty; copy it there",
    "brain.n5/setup0/timepoint0/s0": r"brain\.xml: a part of it lies in .*s0, which is missing; copy it there",
    "brain.n5/setup0/timepoint0/s0/attributes.json": r"s0, which has no attributes\.json; copy it there",
}


@pytest.mark.parametrize("lost", LOST)
def test_lost_parts(brain, lost):
    path = brain.parent / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(SelmaError, match=LOST[lost]):
        open_volume(brain)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"downsamplingFactors": [[1, 1, 1], 2]}', '{"downsamplingFactors": [[1, 1, 1]]}']
)
def test_damaged_attributes_of_a_setup(brain, text):
    (brain.with_suffix(".n5") / "setup0" / "attributes.json").write_text(text)
    with pytest.raises(SelmaError, match=r"brain\.n5.*: cannot be read"):
        open_volume(brain, level=1)


def test_without_factors_the_shapes_give_them(tmp_path, voxels):
    xml = write_bdv(tmp_path / "b.n5", [voxels[:, :20, :28]], spacing_um_zyx=SPACING)
    (tmp_path / "b.n5" / "setup0" / "attributes.json").unlink()
    assert open_volume(xml, level=1).level_factor_zyx == (1, 2, 2)


@pytest.mark.parametrize("name", ["my brain (1).n5", "my brain (1)"])
@pytest.mark.parametrize("written", ["plain", "escaped", "address"])
def test_a_folder_by_its_content_and_its_path_in_the_xml(brain, voxels, name, written):
    """Newer versions escape characters in paths; the ending of the folder is free."""
    folder = brain.with_suffix(".n5").rename(brain.with_name(name))
    (folder / "attributes.json").write_text('{"n5": "2.5.0"}')
    text = {
        "plain": name,
        "escaped": name.replace(" ", "%20"),
        "address": f"file:{folder.as_posix().replace(' ', '%20')}",
    }[written]
    brain.write_text(brain.read_text().replace("brain.n5", text))
    assert is_volume(folder)
    assert is_store(folder)
    assert is_single_volume(folder)
    for path in (brain, folder):
        volume = open_volume(path)
        assert volume.spacing_um_zyx == pytest.approx(SPACING)
        np.testing.assert_array_equal(volume.read(), voxels)
    assert stem(folder) == name.removesuffix(".n5")


def test_n5_of_other_layouts(tmp_path, voxels):
    for number in range(7):
        write_n5(tmp_path / "lab.n5" / f"c{number}" / "s0", voxels, BLOCK)
    path = tmp_path / "lab.n5"
    assert not is_volume(path)
    for ask in (open_volume, inventory):
        with pytest.raises(SelmaError, match=r"lab\.n5: is N5 of another layout than BigDataViewer's") as error:
            ask(path)
    assert "with c0/s0 (11 × 21 × 29 of uint16), c1/s0 (" in str(error.value)
    assert str(error.value).count(" of uint16") == 5
    with pytest.raises(SelmaError, match=r"s0: is N5 of another layout .*, with \. \(11 × 21 × 29 of uint16\);"):
        open_volume(path / "c0" / "s0")
    (tmp_path / "empty.n5").mkdir()
    with pytest.raises(SelmaError, match=r"empty\.n5: is N5 .* with no dataset;"):
        open_volume(tmp_path / "empty.n5")


def test_n5_needs_no_h5py(brain, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for path in (brain, brain.with_suffix(".n5")):
        assert missing_library(path) is None
        assert open_volume(path).shape == SHAPE
    brain.write_text(brain.read_text().replace("bdv.n5", "bdv.hdf5").replace("n5", "hdf5"))
    assert "needs h5py" in missing_library(brain)


def send_sum(volume, queue):
    queue.put(int(volume.read().sum(dtype=np.uint64)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_in_another_process_after_reading_here(brain, voxels, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    volume = open_volume(brain)
    volume.read()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(), voxels)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=send_sum, args=(volume, queue))
    process.start()
    assert queue.get(timeout=60) == voxels.sum(dtype=np.uint64)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("given_as", [".xml", ".n5"])
def test_every_block_counts_in_the_fingerprint(brain, given_as):
    path = brain.with_suffix(given_as)
    before = _contents(path)
    assert not _contents(path).differs(before)
    file = brain.with_suffix(".n5") / "setup0/timepoint0/s0/0/0/0"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert _contents(path).differs(before)
    file.write_bytes(content)
    assert not _contents(path).differs(before)
    brain.write_text(brain.read_text().replace("1.6", "1.7"))
    assert _contents(path).differs(before)
