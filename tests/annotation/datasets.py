"""Conversion of a folder of cubes, and a look at the dataset that it makes."""

import hashlib

import nibabel
import numpy as np

from nnunet_selma.annotation.conversion import convert_cubes
from nnunet_selma.annotation.cube_settings import CubeSettings
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.running.json_files import read_json
from tests.annotation.folders import blobs, paint, write_cubes

DATASET = "Dataset510_SELMA3D"


def convert(source, folders, answers=None, **settings):
    return convert_cubes(source, AnnotatedSettings(**settings), CubeSettings(**(answers or {})), folders)


def grow(source, folders, rng, brain="d"):
    """Convert with one more cube of a brain; returns its name."""
    (name,) = write_cubes(source, rng, [brain], round_number=2)
    paint(source, name, blobs(rng))
    convert(source, folders)
    return name


def held_out(folders):
    splits = read_json(folders.preprocessed / DATASET / "splits_final.json")
    return {case: fold for fold, split in reversed(list(enumerate(splits))) for case in split["val"]}


def tree(folder):
    """Every file of a folder with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj).T
