"""ND2 files for tests: named chunks, with headers in XML, a frame of all channels for each slice, and a map of the chunks at the end."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0x0ABECEDA
_TYPES = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}
_LOOPS = {"t": 1, "p": 2, "z": 4, "u": 7}


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(*item) for item in value.items())}</{name}>"
    return (
        f'<{name} runtype="{_TYPES[type(value)]}" value="{str(value).lower() if isinstance(value, bool) else value}"/>'
    )


def _header(content: Mapping[str, Any]) -> bytes:
    return _xml("variant", {"no_name": dict(content)}).encode()


def _chunk(name: bytes, data: bytes, name_length: int) -> bytes:
    return struct.pack("<IIQ", _MAGIC, name_length, len(data)) + name.ljust(name_length, b"\0") + data


def write_nd2(
    path: Path,
    voxels: np.ndarray,
    *,
    axes: str = "tpzcyx",
    spacing_um_zyx: Sequence[float] | None = (3.0, 1.5, 1.5),
    names: Sequence[str] = (),
    positions: Sequence[str] = (),
    taken: int | None = None,
    compressed: bool = False,
    colour: bool = False,
) -> Path:
    """Write an image whose axes end in c, y, x; `taken` frames of all are stored."""
    loops = dict(zip(axes[:-3], voxels.shape[:-3], strict=True))
    frames = voxels.reshape(-1, *voxels.shape[-3:])
    taken = len(frames) if taken is None else taken
    components, height, width = voxels.shape[-3:]
    pixel = voxels.itemsize
    z, y, _ = spacing_um_zyx or (0.0, 0.0, 0.0)
    probe = {"pFluorescentProbe": {"m_sName": "none"}}
    planes: dict[str, Any] = {"a0": {"uiCompCount": 3, **probe}} if colour else {}
    for number in range(0 if colour else components):
        planes[f"a{number}"] = {"uiCompCount": 1, **probe, **({"sDescription": names[number]} if names else {})}
    experiment: dict[str, Any] = {}
    for axis, length in reversed(loops.items()):
        pars: dict[str, Any] = {"uiCount": length, "dZStep": float(z), "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
        if axis == "p":
            points = {
                f"p{n}": {"dPosX": 1.0, **({"dPosName": positions[n]} if positions else {})} for n in range(length)
            }
            pars = {"Points": points}
        inner = {"ppNextLevelEx": {"i0": experiment}} if experiment else {}
        experiment = {"eType": _LOOPS[axis], "uLoopPars": pars, **inner}
    headers = {
        b"ImageAttributesLV!": {
            "uiBpcInMemory": 8 * pixel,
            "uiBpcSignificant": 8 * pixel,
            "uiComp": components,
            "uiHeight": height,
            "uiWidth": width,
            "uiWidthBytes": width * pixel * components,
            "uiSequenceCount": taken,
            "eCompression": 0 if compressed else 2,
        },
        b"ImageMetadataSeqLV|0!": {
            "bCalibrated": spacing_um_zyx is not None,
            "dCalibration": float(y),
            "sPicturePlanes": {"uiCount": len(planes), "sPlaneNew": planes},
        },
        b"ImageMetadataLV!": experiment,
    }
    content = _chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32)
    chunks = {name: (_header(header), len(name)) for name, header in headers.items() if header}
    for number, frame in enumerate(frames[:taken]):
        data = np.ascontiguousarray(frame.transpose(1, 2, 0)).tobytes()
        chunks[b"ImageDataSeq|%d!" % number] = (bytes(8) + (zlib.compress(data) if compressed else data), 4072)
    entries = b""
    for name, (data, name_length) in chunks.items():
        entries += name + struct.pack("<QQ", len(content), len(data))
        content += _chunk(name, data, name_length)
    signature = b"ND2 CHUNK MAP SIGNATURE 0000001!"
    end = _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", entries + signature, 32)
    path.write_bytes(content + end + signature + struct.pack("<Q", len(content)))
    return path
