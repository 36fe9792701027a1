"""Removing small components of segmentations, as team bioAI of SELMA3D 2024 did below 5 voxels (paper, section 4.2.2)."""

from pathlib import Path

import imagecodecs
import nibabel
import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.components import label
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.nifti import is_nifti


def remove_small(mask: Array, least_voxels: int) -> tuple[Array, int]:
    """A copy of the mask without its small components, and how many were removed.

    Args:
        mask: labels, (z, y, x). Components are 26-connected voxels above 0, whatever their labels; components that stay keep
            their labels.
        least_voxels: size of the smallest component that stays; 0 and 1 remove nothing.
    """
    labels, count = label(mask > 0)
    small = np.bincount(labels[labels > 0], minlength=count + 1) < least_voxels
    small[0] = False  # the background
    return np.where(small[labels], 0, mask).astype(mask.dtype), int(small.sum())


def remove_small_in_file(source: Path, target: Path, least_voxels: int) -> int:
    """Write a NIfTI segmentation without its small components, with the same header; returns how many were removed.

    Raises:
        SelmaError: the file is no three-dimensional NIfTI or is damaged, or the result could not be written whole.
    """
    if not is_nifti(source):
        raise SelmaError(f"{source}: small components are removed from NIfTI files only (.nii, .nii.gz)")
    mask, removed = remove_small(open_volume(source).read(), least_voxels)
    stored = nibabel.load(source)
    content = nibabel.Nifti1Image(mask.T, stored.affine, stored.header, dtype=mask.dtype).to_bytes()
    try:
        with whole_file(target) as partial:
            partial.write_bytes(imagecodecs.gzip_encode(content, level=1) if target.suffix == ".gz" else content)
    except OSError as error:
        raise SelmaError(
            f"{target}: could not be written whole ({error}); make room and run the command again"
        ) from error
    return removed


def remove_small_in_folder(
    source: Path, target: Path, least_voxels: int, progress: Progress[Path] = silent
) -> dict[str, int]:
    """Write every NIfTI segmentation of a folder into another, without its small components.

    Returns:
        Number of components that were removed, by file name.

    Raises:
        SelmaError: no segmentation in the folder, the same folder twice, or a file that cannot be read or written.
    """
    if not source.is_dir():
        raise SelmaError(f"{source}: there is no such folder")
    files = sorted(path for path in source.iterdir() if is_nifti(path) and not path.name.startswith("."))
    if not files:
        raise SelmaError(f"{source}: holds no segmentation (.nii or .nii.gz); give the output folder of a prediction")
    if target.resolve() == source.resolve():
        raise SelmaError(f"{target}: is the folder to read, whose files would be lost; give another one with -o")
    target.mkdir(parents=True, exist_ok=True)
    return {
        path.name: remove_small_in_file(path, target / path.name, least_voxels) for path in progress(files, "removing")
    }
