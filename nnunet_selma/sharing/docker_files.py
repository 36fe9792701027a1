"""Texts of the files around a packed model: Dockerfile, requirements, project file and README."""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.sharing.editions import PORT, Edition

Base = Literal["cpu", "cuda"]
PROJECT = "nnunet-selma"
ARCHIVE = "model.tar.gz"
_BUILDER = "setuptools==80.9.0"
"""Package that builds this one in the image."""
_EXTRAS = ("brains", "networks")
"""Extras of this package that a prediction may need: OME-Zarr, in which it is written, and networks made from MONAI's blocks."""
_TORCH = ("torch", "torchvision")
"""Packages that are built for a kind of device, and must come from one index."""
_WHEELS = "https://download.pytorch.org/whl"
"""Indexes of PyTorch's packages for kinds of devices; pip's usual index has those for the newest CUDA."""


def pinned() -> dict[str, str]:
    """Each package that this one requires, directly or by way of others, to its version here: versions that work together.

    PyTorch brings what it requires itself, which differs between kinds of devices.

    Raises:
        SelmaError: this package is not installed, or lacks an extra that the container needs.
    """
    if _version(PROJECT) is None:
        raise SelmaError(
            f"{PROJECT} is not installed here, so that the versions it works with are not known; install it: pip install ."
        )
    versions: dict[str, str] = {}
    to_do = [*_required(PROJECT, _EXTRAS), *_TORCH]
    for name in to_do:  # grows
        number = _version(name)
        if number is None or name in versions:  # for another system or another Python
            continue
        versions[name] = number
        to_do += [] if name in _TORCH else _required(name)
    if "zarr" not in versions or "ome-zarr-models" not in versions:
        raise SelmaError(
            f"the container predicts by way of OME-Zarr, and takes the versions of here: pip install '{PROJECT}[brains]' first, which needs "
            "Python 3.11"
        )
    return versions


def _required(package: str, extras: Sequence[str] = ()) -> list[str]:
    """Names of the packages that an installed one requires, as an index spells them."""
    names = []
    for line in requires(package) or []:
        name, extra = re.match(r"[A-Za-z0-9._-]+", line), re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if name is not None and (extra is None or extra[1] in extras):
            names.append(re.sub(r"[-_.]+", "-", name[0]).lower())
    return names


def _version(name: str) -> str | None:
    """Version of an installed package, without the part that names a local build; None where it is not installed."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def requirements(versions: Mapping[str, str]) -> str:
    """Content of requirements.txt: all but PyTorch, which comes from an index of its own."""
    return "".join(f"{name}=={number}\n" for name, number in versions.items() if name not in _TORCH)


def project_file(versions: Mapping[str, str]) -> str:
    """Content of the pyproject.toml beside the source of this package."""
    dependencies = "".join(f'    "{name}=={number}",\n' for name, number in versions.items())
    return f"""\
[build-system]
requires = ["{_BUILDER}"]
build-backend = "setuptools.build_meta"

[project]
name = "{PROJECT}"
version = "{__version__}"
requires-python = ">=3.10"
dependencies = [
{dependencies}]

[project.scripts]
nnunet-selma = "nnunet_selma.cli:main"

[tool.setuptools.packages.find]
include = ["nnunet_selma*"]

[tool.setuptools.package-data]
nnunet_selma = ["py.typed"]
"""


def dockerfile(edition: Edition, base: Base, versions: Mapping[str, str]) -> str:
    """Content of the Dockerfile."""
    torch = " ".join(f"{name}=={versions[name]}" for name in _TORCH if name in versions)
    label = f"\nLABEL {edition.label}\n" if edition.label else ""
    model = (
        f"# the platform puts the content of {ARCHIVE} there\nRUN mkdir -p {edition.model}"
        if edition.apart
        else f"COPY --chown=user:user resources {edition.model}"
    )
    driver = (
        "\n# PyTorch brings CUDA with it, and the driver is the host's\n"
        "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n"
        if base == "cuda"
        else ""
    )
    index = f"{_WHEELS}/cpu" if base == "cpu" else ""
    expose = f"EXPOSE {PORT}\n" if edition.server else ""
    command = ["python", "-m", "nnunet_selma.sharing.serve", "--edition", str(edition.year)]
    command += ["--input", "/input", "--output", "/output", "--model", str(edition.model)]
    entry = ", ".join(f'"{word}"' for word in command)
    return f"""\
# SELMA3D {edition.year}, written by {PROJECT} {__version__}
FROM --platform=linux/amd64 python:{platform.python_version()}-slim
{label}{driver}
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=agg MPLCONFIGDIR=/tmp/matplotlib
RUN groupadd --system user && useradd --system --create-home --no-log-init --gid user user
WORKDIR /opt/app

# another index has another version of CUDA, as in --build-arg TORCH_INDEX={_WHEELS}/cu126; empty: pip's usual one
ARG TORCH_INDEX="{index}"
RUN pip install --no-cache-dir ${{TORCH_INDEX:+--index-url "$TORCH_INDEX"}} {torch}
COPY requirements.txt /opt/app/
RUN pip install --no-cache-dir --requirement requirements.txt
COPY package /opt/app/package
RUN pip install --no-cache-dir --no-deps /opt/app/package

{model}

USER user
{expose}ENTRYPOINT [{entry}]
"""


IGNORED = f"{ARCHIVE}\nfake\nREADME.md\n"
"""Content of .dockerignore: files that the image does not need."""


def build_command(image: str) -> str:
    """Command that builds the image, in its folder."""
    return f"docker build --platform linux/amd64 -t {image} ."


def readme(edition: Edition, base: Base, image: str, about: list[str], fake: str) -> str:
    """Content of README.md.

    Args:
        edition: the edition.
        base: kind of device.
        image: name of the image.
        about: sentences about the packed model.
        fake: name of the fake image.
    """
    gpu = " --gpus all" if base == "cuda" else ""
    common = f'--network none{gpu} -v "$PWD/fake/input:/input:ro" -v "$PWD/fake/output:/output"'
    prepare = "mkdir -p fake/output && chmod 777 fake/output"
    upload = f"Upload `{image}.tar.gz` as the container image. The weights are in it."
    if edition.apart:
        prepare += f" && mkdir -p fake/model && tar -xzf {ARCHIVE} -C fake/model"
        common += f' \\\n            -v "$PWD/fake/model:{edition.model}:ro"'
        upload = f"Upload `{image}.tar.gz` as the container image, and `{ARCHIVE}` as the model: its content comes to `{edition.model}`."
    if edition.server:
        run = f"""\
        {prepare}
        docker run --rm --detach --name {image} {common} {image}
        sleep 5
        docker exec {image} python -c "from urllib.request import urlopen as ask; u = 'http://localhost:{PORT}/'; print(ask(u + 'health').status, ask(u + 'invoke', b'').status)"
        docker stop {image}"""
        result = f"It prints 200 and 201, and `fake/output/{edition.output}` is there."
    else:
        run = f"""\
        {prepare}
        docker run --rm {common} {image}"""
        result = f"It ends with code 0, and `fake/output/{edition.output}` is there."
    driver = (
        "With a GPU whose driver is too old for the CUDA of this PyTorch, build with another index, as in\n"
        f"`--build-arg TORCH_INDEX={_WHEELS}/cu126`, if it has this version of PyTorch.\n\n"
        if base == "cuda"
        else ""
    )
    listed = "\n".join(f"- {sentence}" for sentence in about)
    return f"""\
# Container for SELMA3D {edition.year}

Written by {PROJECT} {__version__}; runs on {"a GPU, or without one on a CPU" if base == "cuda" else "a CPU"}.

{listed}

1. **Build** the image in this folder:

        {build_command(image)}

2. **Try** it on the fake image `{fake}`:

{run}

   {result}

3. **Save** and upload it:

        docker save {image} | gzip > {image}.tar.gz

   {upload}

{driver}Without Docker, with `{PROJECT}` installed, the same program runs as

    python -m nnunet_selma.sharing.serve --edition {edition.year} --input fake/input --output fake/output --model {"fake/model" if edition.apart else "resources"}
"""
