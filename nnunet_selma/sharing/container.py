"""A folder that `docker build` takes as it is: Dockerfile, this package, the entry program, and a packed model."""

import gzip
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

import nnunet_selma
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.voxel_sizes import as_text
from nnunet_selma.prediction.grids import trained_in_voxels
from nnunet_selma.routing.routers import OTHER, open_router
from nnunet_selma.running.devices import available_device
from nnunet_selma.running.json_files import read_json, write_json, write_text
from nnunet_selma.running.whole_files import whole_folder
from nnunet_selma.sharing.docker_files import (
    ARCHIVE,
    IGNORED,
    PROJECT,
    Base,
    build_command,
    dockerfile,
    pinned,
    project_file,
    readme,
    requirements,
)
from nnunet_selma.sharing.editions import EDITIONS, INPUTS, Edition, EditionYear
from nnunet_selma.sharing.meta_image import Geometry, write_mha
from nnunet_selma.sharing.packed_model import PackedModel, write_packed_model
from nnunet_selma.sharing.segmenting import open_models
from nnunet_selma.structures import STRUCTURES

_FAKE = "cell_nuclei_0001.mha"
"""Name of the fake image; the structure has a voxel size in the table."""
_FAKE_SHAPE = (24, 32, 40)


@dataclass(frozen=True, kw_only=True)
class ContainerSettings:
    """Options of a container folder."""

    edition: EditionYear
    """Edition of the challenge: 2024 segments one case and ends, 2026 is a server."""
    base: Base = "cuda"
    """PyTorch of the image; cuda runs on a CPU too, and is several GB larger."""


@dataclass(frozen=True)
class ContainerFolder:
    """A container folder that was written."""

    folder: Path
    build: str
    """Command that builds the image, in the folder."""
    model: Path
    """The archive of the model, or its folder in the image."""
    warnings: tuple[str, ...]
    """Sentences about cases that the container cannot segment."""


def write_container(
    packed: PackedModel,
    output: Path,
    settings: ContainerSettings,
    say: Callable[[str], None] = lambda _: None,
) -> ContainerFolder:
    """Write a container folder, which is whole or absent.

    Args:
        packed: models, and the settings of their prediction.
        output: the folder, which does not exist yet or is empty.
        settings: options of the folder.
        say: receives a sentence about each part.

    Raises:
        SelmaError: the output is there, a model is incomplete or not fit for the challenge, or this package is not installed.
    """
    output, edition = output.resolve(), EDITIONS[settings.edition]
    with whole_folder(output) as staging:
        versions = pinned()
        _check_packed(packed)
        write_packed_model(packed, staging / "resources")  # says of a file that is cut short that it is
        open_models(packed, "cpu")
        if edition.apart:
            say("compressing the model")
            write_archive(staging / "resources", staging / ARCHIVE)
            shutil.rmtree(staging / "resources")
        _write_package(staging / "package", versions)
        _write_fake_case(staging / "fake" / "input", edition)
        image, warnings = _image_name(output), _warnings(packed)
        about = [*_about(packed), *warnings]
        for name, text in {
            "Dockerfile": dockerfile(edition, settings.base, versions),
            "requirements.txt": requirements(versions),
            ".dockerignore": IGNORED,
            "README.md": readme(edition, settings.base, image, about, _FAKE),
        }.items():
            write_text(staging / name, text)
    model = output / (ARCHIVE if edition.apart else "resources")
    return ContainerFolder(output, build_command(image), model, tuple(warnings))


def _check_packed(packed: PackedModel) -> None:
    """Raise `SelmaError` unless models are complete, and belong to the router."""
    if packed.router is None:
        if len(packed.models) != 1:
            raise SelmaError(
                "several models need a router, which chooses one of them for each case; give it with --router"
            )
    else:
        classes = open_router(packed.router, available_device("cpu")).classes
        unknown = [name for name in packed.models if name not in (*classes, OTHER)]
        if unknown:
            raise SelmaError(
                f"--model {unknown[0]}=…: the router knows no {unknown[0]}; its classes are {', '.join(classes)}"
            )
    for model in packed.models.values():
        model.check_complete()


def _about(packed: PackedModel) -> list[str]:
    """Sentences about a packed model."""
    lines = [
        f"{name if packed.router else 'Model'}: {model.folder.name}, {counted(len(model.folds), 'fold')} ({', '.join(model.folds)}), "
        f"{model.checkpoint}{', mirrored' if model.mirroring else ''}"
        for name, model in packed.models.items()
    ]
    if packed.router:
        lines.append(f"A router chooses the model of each case: {packed.router.name}")
    if packed.remove_below > 1:
        lines.append(f"Components of fewer than {packed.remove_below} voxels are removed.")
    if packed.spacing_um_zyx:
        lines.append(f"Voxel size of all cases: {as_text(packed.spacing_um_zyx)} µm (z, y, x).")
    return lines


def _warnings(packed: PackedModel) -> list[str]:
    """A sentence about the structures whose voxel size is not known, if it matters."""
    in_voxels = all(trained_in_voxels(read_json(model.folder / "plans.json")) for model in packed.models.values())
    if in_voxels or packed.spacing_um_zyx:
        return []
    unknown = [each.prefix for each in STRUCTURES if each.density and each.spacing_um_zyx is None]
    return [
        "The model was trained with a voxel size. That of a case is the one of the structure that its name begins with; where SELMA3D states none "
        f"({', '.join(unknown)}), or the name says no structure, it is the header's, and a header of 1, 1, 1 ends in an error. "
        "--spacing sets one for all."
    ]


def _image_name(output: Path) -> str:
    """Name of the folder as Docker takes it for an image."""
    return re.sub(r"[^a-z0-9]+", "-", output.name.lower()).strip("-") or "selma3d"


def write_archive(folder: Path, archive: Path) -> None:
    """Write the content of a folder as .tar.gz that anybody may read, the same for the same content."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with gzip.GzipFile(archive, "wb", 1, mtime=0) as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, ".", filter=plain)


def _write_package(folder: Path, versions: dict[str, str]) -> None:
    """Copy the source of this package, with a project file by which pip installs it."""
    source = Path(nnunet_selma.__file__).parent
    shutil.copytree(source, folder / "nnunet_selma", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    write_text(folder / "pyproject.toml", project_file(versions))
    write_text(folder / "LICENSE", _licence(source))


def _licence(source: Path) -> str:
    """The licence of this package: that of its installation, or of the clone around the source.

    A build leaves a description of the package in the clone, without the licence, which may be met before the installation.
    """
    installed = (each.read_text("licenses/LICENSE") for each in distributions(name=PROJECT))
    text = next(filter(None, installed), None)
    return text or (source.parent / "LICENSE").read_text(encoding="utf-8")


def _write_fake_case(folder: Path, edition: Edition) -> None:
    """An input folder as the platform would mount it, with noise for an image and a header of 1, 1, 1."""
    (folder / edition.images).mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(100, 4000, _FAKE_SHAPE, dtype=np.uint16)
    write_mha(folder / edition.images / _FAKE, _FAKE_SHAPE, "uint16", Geometry(), [voxels])
    socket = {"slug": edition.images.rpartition("/")[2], "relative_path": edition.images, "is_image_kind": True}
    write_json(folder / INPUTS, [{"socket": socket, "file": None, "image": {"name": _FAKE}, "value": None}])
