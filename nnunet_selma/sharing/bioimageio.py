"""Package of a model for bioimage.io: weights in two formats, a test input with its output, a description (rdf.yaml, format 0.5) and a README.

The weights are those of nnU-Net's network, which `get_network_from_plans` builds without code of this package, and the same as TorchScript. The
description is JSON, which is YAML too. Before the package gets its name, `test_model` of bioimageio.core runs it in an interpreter that has that
library.

The format describes one network on one grid of voxels. `LIMITS` says what of nnU-Net's prediction it cannot express.
"""

import hashlib
import json
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.checkpoints import check_finite, read_checkpoint
from nnunet_selma.nnunet.plans import total_strides
from nnunet_selma.running.json_files import write_json, write_text
from nnunet_selma.running.whole_files import whole_file, whole_folder
from nnunet_selma.sharing.cite import citations
from nnunet_selma.sharing.licences import selma3d_in_words
from nnunet_selma.sharing.results import ResultFacts

FORMAT = "0.5.12"
"""Version of the format of rdf.yaml, that of the bioimageio.spec with which packages were tested."""
LIMITS = (
    "Images are not resampled: bring them to the voxel size of the axes first, as nnU-Net does by itself.",
    "A large image is not tiled as nnU-Net tiles it (overlapping windows, Gaussian weights, mirroring): how it is cut is left to the program that runs "
    "the model, and normalisation uses the voxels that it passes.",
    "The output is probabilities; labels are the class with the largest one, or each region above 0.5.",
    "One fold is packaged; nnU-Net averages the logits of several.",
)
"""Parts of nnU-Net's prediction that the format cannot express."""
_ARCHITECTURES = "dynamic_network_architectures."
_NAME = re.compile(r"[A-Za-z0-9_+\- ()]{5,128}")
_INPUT, _OUTPUT = "image", "probabilities"
_UNITS = {"um": {"unit": "micrometer"}, "mm": {"unit": "millimeter"}, "voxel": {}}
_SMALLEST_STD = 1e-8
"""Least standard deviation that nnU-Net divides by."""
_TEST = """if True:
    import json, sys
    from importlib.metadata import version
    import nnunetv2
    from bioimageio.core import test_model
    names = ("bioimageio.core", "bioimageio.spec", "pydantic", "torch", "nnunetv2")
    answer = {"status": "ready", "faults": [], "versions": {name: version(name) for name in names}}
    if len(sys.argv) > 1:
        summary = test_model(sys.argv[1])
        faults = [" ".join([*map(str, error.loc), error.msg]) for detail in summary.details for error in detail.errors]
        answer |= {"status": summary.status, "faults": faults}
    print()
    print(json.dumps(answer))
"""


@dataclass(frozen=True, kw_only=True)
class PackageSettings:
    """Entries of a package that a results folder does not hold."""

    name: str | None = None
    """Name of the model: 5 to 128 letters, digits, spaces and _ + - ( ); None: dataset, trainer, plans and configuration."""
    authors: tuple[str, ...] = ()
    """Names of the authors of the model; empty: none are stated."""
    license: str | None = None
    """SPDX identifier, such as CC-BY-NC-4.0; None: none is stated."""
    validation: str = ""
    """Text below the heading Validation; empty: that nothing is known."""


def write_package(
    facts: ResultFacts, output: Path, settings: PackageSettings, *, python: Path = Path(sys.executable)
) -> dict[str, str]:
    """Write a package that has passed `test_model`; returns the versions with which it did.

    Args:
        facts: a segmentation model of one fold.
        output: folder to make, or a file that ends in .zip.
        settings: entries that the results folder does not hold.
        python: interpreter that has bioimageio.core and nnunetv2.

    Raises:
        SelmaError: the model cannot be expressed, the output exists, the interpreter lacks a library, or the package fails.
    """
    _asked(python)
    if output.suffix != ".zip":
        with whole_folder(output) as folder:
            write_files(facts, folder, settings)
            return check_package(folder, python)
    if output.exists():
        raise SelmaError(f"{output}: exists already; remove it, or choose another -o")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        write_files(facts, Path(name), settings)
        versions = check_package(Path(name), python)
        with whole_file(output) as partial, zipfile.ZipFile(partial, "w") as archive:
            for path in sorted(Path(name).iterdir()):
                archive.write(path, path.name)
    return versions


def check_package(package: Path, python: Path = Path(sys.executable)) -> dict[str, str]:
    """Run `test_model` on a package; returns the versions with which it passed.

    Args:
        package: folder, or zip file.
        python: interpreter that has bioimageio.core and nnunetv2.

    Raises:
        SelmaError: the interpreter lacks a library, or the package fails.
    """
    answer = _asked(python, str(package / "rdf.yaml" if package.is_dir() else package))
    if answer["status"] != "passed":
        raise SelmaError(
            f"{package}: fails test_model of bioimageio.core: {'; '.join(answer['faults']) or answer['status']}"
        )
    versions: dict[str, str] = answer["versions"]
    return versions


def _asked(python: Path, *package: str) -> dict[str, Any]:
    """The answer of `_TEST` in another interpreter; raises `SelmaError` if it gives none."""
    try:
        done = subprocess.run([python, "-c", _TEST, *package], capture_output=True, text=True, check=False)
    except OSError as error:
        raise SelmaError(f"{python}: cannot be started ({error.strerror}); give a Python") from error
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if "ModuleNotFoundError" in reason or "PackageNotFoundError" in reason:
        raise SelmaError(
            f"{python}: cannot test a package for bioimage.io ({reason}); install nnunet-selma[bioimageio] there",
            option="give another Python with --bioimageio-python",
        )
    raise SelmaError(
        f"{python}: bioimageio.core failed ({reason}); install the versions that nnunet-selma[bioimageio] pins"
    )


def write_files(facts: ResultFacts, folder: Path, settings: PackageSettings) -> None:
    """Write the files of a package into a folder, untested; raises `SelmaError` if the model cannot be expressed."""
    _check_expressible(facts)
    name = settings.name or " ".join(
        filter(None, (facts.dataset_name, facts.trainer, facts.plans_name, facts.configuration))
    )
    if not _NAME.fullmatch(name):
        raise SelmaError(f"{name!r}: a name on bioimage.io has 5 to 128 letters, digits, spaces and _ + - ( )")
    network = _network(facts)
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).uniform(0, 1000, (1, len(facts.channels), *facts.patch_size)).astype(np.float32)
    normalised = torch.from_numpy(_normalised(image, facts))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes in the trace, which test_model tries
        probabilities = _probabilities(network(normalised), facts).numpy()
        traced: Any = torch.jit.trace(network, normalised)  # type: ignore[no-untyped-call]
    _save_script(traced, folder / "weights_torchscript.pt")
    torch.save(network.state_dict(), folder / "weights.pt")
    np.save(folder / "test_input.npy", image)
    np.save(folder / "test_output.npy", probabilities)
    write_json(folder / "environment.yaml", _environment())
    write_text(folder / "README.md", _readme(name, facts, settings))
    write_json(folder / "rdf.yaml", _description(name, facts, folder, settings))


def _save_script(script: Any, path: Path) -> None:
    """Save a TorchScript without the entries for debugging, which hold the folders of this machine."""
    with zipfile.ZipFile(BytesIO(script.save_to_buffer())) as whole, zipfile.ZipFile(path, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, whole.read(entry))


def _check_expressible(facts: ResultFacts) -> None:
    """Raise `SelmaError` if the format cannot express the model."""
    if facts.kind != "segmentation":
        raise SelmaError(
            f"{facts.folder}: is a pretraining, and a package for bioimage.io segments; give a fine-tuned model"
        )
    if len(facts.folds) != 1:
        trained = " ".join(fold.fold for fold in facts.folds)
        raise SelmaError(
            f"{facts.folder}: bioimage.io takes one network, and this model has the folds {trained}",
            option="choose one with -f",
        )
    if not facts.network.startswith(_ARCHITECTURES):
        raise SelmaError(
            f"{facts.folder}: its network is {facts.network}, which bioimage.io cannot build without code of ours; only nnU-Net's networks "
            f"({_ARCHITECTURES}*) can be packaged"
        )
    schemes = set(facts.planned["normalization_schemes"])
    if len(schemes) != 1 or not schemes <= _NORMALISATION.keys() or any(facts.planned["use_mask_for_norm"]):
        masked = " within the non-zero voxels" if any(facts.planned["use_mask_for_norm"]) else ""
        raise SelmaError(
            f"{facts.folder}: is normalised by {', '.join(sorted(schemes))}{masked}, which bioimage.io cannot express; one of "
            f"{', '.join(_NORMALISATION)} for all channels and voxels can"
        )


def _network(facts: ResultFacts) -> torch.nn.Module:
    """The network with its weights; raises `SelmaError` if they are not those of the network in the plans, or not finite."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    path = facts.folds[0].checkpoint
    weights = read_checkpoint(path).weights
    check_finite(weights, str(path))
    network: torch.nn.Module = get_network_from_plans(**_architecture(facts))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise SelmaError(
            f"{path}: has other weights than {facts.network} of its plans, so its trainer built another network, which bioimage.io cannot build"
        ) from error
    return network.eval()


def _architecture(facts: ResultFacts) -> dict[str, Any]:
    """Arguments of nnU-Net's `get_network_from_plans`."""
    architecture = facts.planned["architecture"]
    return {
        "arch_class_name": architecture["network_class_name"],
        "arch_kwargs": architecture["arch_kwargs"],
        "arch_kwargs_req_import": architecture["_kw_requires_import"],
        "input_channels": len(facts.channels),
        "output_channels": len(_heads(facts)),
        "allow_init": False,
        "deep_supervision": False,
    }


def _heads(facts: ResultFacts) -> list[str]:
    """Names of the output channels, in nnU-Net's order."""
    if _has_regions(facts):
        return list(facts.classes)
    return ["background", *sorted(facts.classes, key=lambda name: int(np.ravel(facts.classes[name])[0]))]


def _has_regions(facts: ResultFacts) -> bool:
    return any(isinstance(value, list) and len(value) > 1 for value in facts.classes.values())


def _axes(facts: ResultFacts) -> list[str]:
    """Spatial axes in the order of the network."""
    return ["zyx"[axis] for axis in facts.plans["transpose_forward"]][-len(facts.patch_size) :]


def _zscore(axes: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": "zero_mean_unit_variance", "kwargs": {"axes": list(axes), "eps": _SMALLEST_STD}}]


def _unchanged(axes: Sequence[str]) -> list[dict[str, Any]]:
    return []


def _to_01(axes: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": "scale_range", "kwargs": {"axes": list(axes), "eps": _SMALLEST_STD}}]


_NORMALISATION = {
    "ZScoreNormalization": _zscore,
    "RescaleTo01Normalization": _to_01,
    "NoNormalization": _unchanged,
}
"""nnU-Net's normalisation to the same in the terms of the format; each channel is normalised alone."""


def _normalised(image: Any, facts: ResultFacts) -> Any:
    """The image as the network takes it."""
    axes = tuple(range(2, image.ndim))
    (scheme,) = set(facts.planned["normalization_schemes"])
    if scheme == "NoNormalization":
        return image
    if scheme == "ZScoreNormalization":
        offset, scale = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    else:
        offset, scale = image.min(axes, keepdims=True), np.ptp(image, axes, keepdims=True)
    return (image - offset) / (scale + _SMALLEST_STD)


def _probabilities(logits: torch.Tensor, facts: ResultFacts) -> torch.Tensor:
    return torch.sigmoid(logits) if _has_regions(facts) else torch.softmax(logits, 1)


def _environment() -> dict[str, Any]:
    """A Conda environment with the library that builds the network."""
    return {
        "name": "nnunet",
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": ["python>=3.10", "pip", {"pip": [f"nnunetv2=={version('nnunetv2')}"]}],
    }


def _description(name: str, facts: ResultFacts, folder: Path, settings: PackageSettings) -> dict[str, Any]:
    """The content of rdf.yaml."""
    axes = _axes(facts)
    # bioimageio.spec compares length × scale / scale with the length, which is exact for numbers of single precision only
    scales = [{"scale": float(np.float32(size)), **_UNITS[facts.unit]} for size in facts.planned["spacing"]]
    sizes = [
        {"min": int(edge), "step": int(step)}
        for edge, step in zip(facts.patch_size, total_strides(facts.planned), strict=True)
    ]
    torch_version = torch.__version__.partition("+")[0]

    def file(source: str) -> dict[str, str]:
        return {"source": source, "sha256": hashlib.sha256((folder / source).read_bytes()).hexdigest()}

    def tensor(identifier: str, channels: Sequence[str], sizes: Sequence[Any], test: str) -> dict[str, Any]:
        space = [
            {"type": "space", "id": axis, "size": size, **scale}
            for axis, size, scale in zip(axes, sizes, scales, strict=True)
        ]
        return {
            "id": identifier,
            "axes": [{"type": "batch"}, {"type": "channel", "channel_names": list(channels)}, *space],
            "test_tensor": file(test),
            "data": {"type": "float32"},
        }

    to_float = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    (scheme,) = set(facts.planned["normalization_schemes"])
    activation = {"id": "sigmoid"} if _has_regions(facts) else {"id": "softmax", "kwargs": {"axis": "channel"}}
    in_light_sheet = " in light-sheet microscopy" if facts.light_sheet else ""
    works = [{"text": citation.sentence, "doi": citation.doi} for citation in citations(facts) if citation.doi]
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": name,
        "description": f"nnU-Net that segments {', '.join(facts.classes)}{in_light_sheet}. {LIMITS[0]}",
        **({"authors": [{"name": author} for author in settings.authors]} if settings.authors else {}),
        **({"license": settings.license} if settings.license else {}),
        "cite": works,
        "tags": [
            "nnU-Net",
            "segmentation",
            f"{len(axes)}d",
            "pytorch",
            *(["light-sheet microscopy"] if in_light_sheet else []),
        ],
        "documentation": file("README.md"),
        "inputs": [
            {
                **tensor(_INPUT, facts.channels, sizes, "test_input.npy"),
                "preprocessing": [to_float, *_NORMALISATION[scheme](axes)],
            }
        ],
        "outputs": [
            {
                **tensor(
                    _OUTPUT, _heads(facts), [{"tensor_id": _INPUT, "axis_id": axis} for axis in axes], "test_output.npy"
                ),
                "postprocessing": [activation],
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **file("weights.pt"),
                "architecture": {
                    "import_from": "nnunetv2.utilities.get_network_from_plans",
                    "callable": "get_network_from_plans",
                    "kwargs": _architecture(facts),
                },
                "pytorch_version": torch_version,
                "dependencies": file("environment.yaml"),
            },
            "torchscript": {
                **file("weights_torchscript.pt"),
                "pytorch_version": torch_version,
                "parent": "pytorch_state_dict",
            },
        },
    }


def _readme(name: str, facts: ResultFacts, settings: PackageSettings) -> str:
    """The documentation that the format asks for."""
    unit = {"um": "µm", "mm": "mm", "voxel": "voxels (no physical size was stated)"}[facts.unit]
    size = " × ".join(f"{float(edge):g}" for edge in facts.planned["spacing"])
    patch = " × ".join(map(str, facts.patch_size))
    limits = "\n".join(f"- {limit}" for limit in LIMITS)
    references = "\n".join(f"- {citation.sentence} ({citation.reason})" for citation in citations(facts))
    return (
        f"# {name}\n\n"
        f"Segments {', '.join(facts.classes)} in images with {', '.join(facts.channels)}; trained with nnU-Net v2 on {facts.dataset_name}.\n\n"
        f"Voxel size ({', '.join(_axes(facts))}): {size} {unit}. Patch of the training: {patch} voxels.\n\n"
        f"# Not in this package\n\n{limits}\n\n"
        f"# Validation\n\n{settings.validation or 'Not known: the package was made without scores on data that the model had not seen.'}\n\n"
        f"# Licence\n\nOf this package: {settings.license or 'not known'}. Training data: {selma3d_in_words(facts.of_selma3d)}\n\n"
        f"# Please cite\n\n{references}\n"
    )
