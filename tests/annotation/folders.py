"""A small folder of cubes as `propose` writes it, and labels as people paint them."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np

from nnunet_selma.running.json_files import read_json, write_json

SHAPE = (12, 14, 16)
SPACING_UM = (4.0, 2.0, 1.5)


def write_nifti(path: Path, voxels, *, origin_um=(0.0, 0.0, 0.0), spacing_um=SPACING_UM) -> None:
    """Write (z, y, x) voxels at a place, in mm as ITK counts."""
    affine = np.diag([*(edge / 1000 for edge in spacing_um[::-1]), 1.0])
    affine[:3, 3] = [place / 1000 for place in origin_um[::-1]]
    image = nibabel.Nifti1Image(voxels.T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def values_sha256(labels) -> str:
    """Hash of the shape and of the values of labels, as four bytes each."""
    content = b"".join(int(value).to_bytes(4, "little") for value in labels.ravel())
    return hashlib.sha256(str(labels.shape).encode() + content).hexdigest()


def write_cubes(
    folder: Path,
    rng: np.random.Generator,
    brains: list[str],
    *,
    round_number: int = 1,
    channels: int = 1,
    suggestion=None,
    shape=SHAPE,
) -> list[str]:
    """Hand over a cube of each of these brains, after the cubes that are there; returns the names of the new cubes."""
    folder.mkdir(exist_ok=True)
    record = folder / "selma_cubes.json"
    content = read_json(record) if record.is_file() else {"rounds": [], "cubes": []}
    names = []
    for number, brain in enumerate(brains, start=len(content["cubes"]) + 1):
        name = f"cube_{number:04d}"
        origin = (number * 1000.0, 0.0, 0.0)
        images = ["image.nii.gz", *(f"image_channel_{n}.nii.gz" for n in range(1, channels))]
        (folder / name).mkdir()
        for image in images:
            voxels = rng.integers(100, 60000, shape, dtype=np.uint16)
            write_nifti(folder / name / image, voxels, origin_um=origin)
        label = folder / name / "label.nii.gz"
        start = np.zeros(shape, np.uint8) if suggestion is None else suggestion
        write_nifti(label, start, origin_um=origin)
        cube = {
            "number": number,
            "name": name,
            "round": round_number,
            "brain": brain,
            "path": f"/brains/{brain}.ome.zarr",
            "images": images,
            "origin_um_zyx": list(origin),
            "suggestion": "empty" if suggestion is None else "model",
            "label_sha256": values_sha256(start),
        }
        write_json(folder / name / "cube.json", cube)
        content["cubes"].append(cube)
        names.append(name)
    settings = {"count": len(brains), "size": 100, "seed": 0, "level": 1, "channels": None}
    paths = {brain: [f"/brains/{brain}.ome.zarr", "fingerprint"] for brain in brains}
    content["rounds"].append({"round": round_number, "settings": settings, "brains": paths})
    write_json(record, content)
    return names


def blobs(rng: np.random.Generator, shape=SHAPE, value: int = 1):
    """Labels of boxes all over a cube."""
    labels = np.zeros(shape, np.uint8)
    for z in range(0, shape[0], 3):
        for y in range(0, shape[1], 3):
            x = int(rng.integers(shape[2] - 3))
            labels[z : z + 2, y : y + 2, x : x + 3] = value
    labels[:, :, ::3] = value
    return labels


def paint(folder: Path, name: str, labels) -> Path:
    """Save a label as a person does, over the one that was handed over."""
    origin = read_json(folder / name / "cube.json")["origin_um_zyx"]
    path = folder / name / "label.nii.gz"
    write_nifti(path, labels, origin_um=origin)
    return path


def keep_unsaved(folder: Path, name: str, labels, number: int = 1) -> Path:
    """The file that napari leaves beside a label when it is killed before the label is saved."""
    origin = read_json(folder / name / "cube.json")["origin_um_zyx"]
    path = folder / name / f"unsaved_{number:04d}.nii.gz"
    write_nifti(path, labels, origin_um=origin)
    return path
