"""From TIFF slices to batches: the tile store against nnU-Net's own path, and against reading crops from the slices."""

import math
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.commands import peak_megabytes, seconds
from benchmarks.pairs import Comparison, Measure, Side
from benchmarks.workspace import DATASET, Plan, fresh_workspace, use
from nnunet_selma import cli
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume

STORE, STOCK = "nnUNetPlans_from510_store", "nnUNetPlans_from510"
_PINNED = {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}
_CONVERT = ("-m", "nnunet_selma.cli", "convert", "unannotated", "--workers", "2")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A brain of TIFF slices, drawn as camera counts of a textured tissue."""

    slices: int = 512
    edge: int = 1536
    tile: int = 256
    tiles: int = 12
    patch: int = 128
    batch: int = 2
    different: int = 48
    """Slices that are drawn; the others are links to them, which read as files of their own do once all lie in the system's cache."""
    compression: str | None = None
    """Of the TIFF files."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of `nnunet-selma convert unannotated` that both ways share."""
        return [
            "--structure",
            "microglia",
            "-d",
            "500",
            "--spacing",
            "voxel",
            "--tile",
            str(self.tile),
            "--tiles-per-volume",
            str(self.tiles),
            "--min-foreground",
            "0",
        ]

    def draw(self, folder: Path) -> Path:
        """Write the slices."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((self.edge, self.edge), np.float32)
        y, x = np.mgrid[: self.edge, : self.edge] / np.float32(self.edge)
        tissue = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.2
        for z in range(self.slices):
            path, like = folder / f"brain_Z{z:04d}.tif", folder / f"brain_Z{z % self.different:04d}.tif"
            if z >= self.different:
                path.hardlink_to(like)
                continue
            # shot noise: the deviation is the root of the count
            expected = 100 + tissue * (500 + 300 * np.sin(0.9 * z + 60 * y) * np.sin(50 * x))
            counts = expected + np.sqrt(expected) * np.roll(noise, 977 * z)
            tifffile.imwrite(path, counts.astype(np.uint16), compression=self.compression)
        for path in sorted(folder.iterdir())[: self.different]:  # into the system's cache
            path.read_bytes()
        return folder


def _prepared(stack: Stack) -> tuple[Path, Path]:
    """A workspace with a planned annotated dataset, and a stack beside it."""
    root = fresh_workspace()
    source = stack.draw(root / "in" / "brain").parent
    content = Plan(patch=(stack.patch,) * 3, features=(16, 32, 64), batch=stack.batch).content()
    content["configurations"]["3d_fullres"]["data_identifier"] = "nnUNetPlans_3d_fullres"
    for kind in ("raw", "preprocessed"):
        (root / kind / "Dataset510_benchmark").mkdir()
        write_json(root / kind / "Dataset510_benchmark" / "dataset.json", DATASET)
    write_json(root / "preprocessed" / "Dataset510_benchmark" / "nnUNetPlans.json", content)
    return root, source


def _convert(root: Path, source: Path, stack: Stack, way: str) -> None:
    use(root)
    more = ["--to", "preprocessed", "--plans-from", "510"] if way == "store" else []
    _run(["convert", "unannotated", str(source), *stack.arguments, *more])
    if way == "stock":
        _run(["plan-pretraining", "-s", "510", "-t", "500", "--workers", str(os.cpu_count() or 1)])


def _run(arguments: list[str]) -> None:
    if cli.main(arguments) != 0:
        raise RuntimeError(f"nnunet-selma {' '.join(arguments)} failed")


@cache
def _converted(way: str, stack: Stack) -> tuple[Path, Path]:
    """A workspace with one way's data in it, and the stack they come from."""
    root, source = _prepared(stack)
    if way != "slices":
        _convert(root, source, stack, way)
    return root, source


def _forget(root: Path) -> None:
    for kind in ("raw", "preprocessed"):
        for folder in (root / kind).glob("*Dataset500*"):
            shutil.rmtree(folder)


def _loader(root: Path, way: str) -> Any:
    """nnU-Net's loader of whole crops, over one way's data."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_selma.nnunet.tile_store import TileStore

    (dataset,) = (root / "preprocessed").glob("Dataset500_*")
    manager = PlansManager(read_json(dataset / f"{STORE if way == 'store' else STOCK}.json"))
    configuration = manager.get_configuration("3d_fullres")
    cases = (TileStore if way == "store" else nnUNetDatasetBlosc2)(str(dataset / configuration.data_identifier))
    patch = configuration.patch_size
    labels = manager.get_label_manager(read_json(dataset / "dataset.json"))
    return nnUNetDataLoader(cases, configuration.batch_size, patch, patch, labels)


def first_batch(way: str, stack: Stack) -> Measure:
    """Seconds from the folder of slices to a batch, everything between included."""
    root, source = _prepared(stack)
    _loader_is_imported()

    def measure() -> float:
        _forget(root)
        start = time.perf_counter()
        _convert(root, source, stack, way)
        next(_loader(root, way))
        return time.perf_counter() - start

    return measure


def _loader_is_imported() -> None:
    """PyTorch's own start is not what is compared."""
    import nnunetv2.training.dataloading.data_loader
    import nnunetv2.utilities.plans_handling.plans_handler  # noqa: F401


def patches_a_second(way: str, stack: Stack) -> Measure:
    """Seconds for each patch, in one process; "slices" reads every crop from the TIFF slices it spans."""
    root, source = _converted(way, stack)
    loader = _loader(root, way) if way != "slices" else None
    volume = open_volume(source / "brain")
    rng = np.random.default_rng(0)

    def crop() -> NDArray[np.float32]:
        box = [
            slice(start, start + stack.patch)
            for start in (int(rng.integers(n - stack.patch + 1)) for n in volume.shape)
        ]
        patch: NDArray[np.float32] = volume.read(*box).astype(np.float32)
        patch -= patch.mean()
        patch /= patch.std()
        return patch

    def measure() -> float:
        count = 2 if loader is None else 8
        start = time.perf_counter()
        for _ in range(count):
            crop() if loader is None else next(loader)
        return (time.perf_counter() - start) / (count if loader is None else count * stack.batch)

    return measure


def disk(way: str, stack: Stack, compressed: bool) -> Measure:
    """Megabytes that a way leaves on disk, or what they hold before compression."""
    root, _ = _converted(way, stack)

    def measure() -> float:
        files = [
            path
            for kind in ("raw", "preprocessed")
            for path in (root / kind).glob("Dataset500_*/**/*")
            if path.is_file()
        ]
        if compressed:
            return sum(path.stat().st_size for path in files) / 1e6
        return sum(_bytes_of_voxels(path) for path in files) / 1e6

    return measure


def _bytes_of_voxels(path: Path) -> int:
    import blosc2
    import nibabel

    if path.name.endswith(".nii.gz"):
        image = nibabel.load(path)
        return int(math.prod(image.shape) * image.get_data_dtype().itemsize)
    if path.suffix == ".b2nd":
        array = blosc2.open(str(path), mode="r")
        return int(math.prod(array.shape) * array.dtype.itemsize)
    return 0


def comparisons(quick: bool = False) -> list[Comparison]:
    """All of them; quick ones are too small to tell anything."""
    stack = Stack(slices=48, edge=128, tile=48, tiles=2, patch=16, different=8) if quick else Stack()
    wide = stack if quick else replace(stack, edge=4096, slices=256, different=24)  # a real brain's are 5000 to 6600
    few = stack if quick else replace(stack, tiles=3)
    ours = "tile store"

    def side(label: str, function: Any, way: str, **more: Any) -> Side:
        return Side(label=label, start=function, arguments={"way": way, "stack": stack, **more}, environment=_PINNED)

    stock = "raw, then nnU-Net's fingerprint and preprocessing"
    found = [
        Comparison(
            name="first_batch",
            what=f"from {stack.slices} TIFF slices of {stack.edge}² to the first batch",
            target=5.0,
            repetitions=3,
            ours=side(ours, first_batch, "store"),
            other=side(stock, first_batch, "stock"),
        ),
        Comparison(
            name="patches_from_slices",
            what=f"reading a patch of {stack.patch}³, slices of {wide.edge}²",
            target=10.0,
            ours=replace(side(ours, patches_a_second, "store"), arguments={"way": "store", "stack": wide}),
            other=replace(
                side("the same crop from the TIFF slices", patches_a_second, "slices"),
                arguments={"way": "slices", "stack": wide},
            ),
        ),
        Comparison(
            name="patches_from_stock",
            what=f"reading a patch of {stack.patch}³",
            target=1.0,
            ours=side(ours, patches_a_second, "store"),
            other=side("nnU-Net's preprocessed cases", patches_a_second, "stock"),
        ),
        *(
            Comparison(
                name=f"disk_{name}",
                what=f"what lies on disk{words}",
                unit="MB",
                target=4.0,
                repetitions=1,
                ours=Side(
                    label=ours,
                    start=disk,
                    arguments={"way": "store", "stack": few, "compressed": compressed},
                    environment=_PINNED,
                ),
                other=Side(
                    label=stock,
                    start=disk,
                    arguments={"way": "stock", "stack": few, "compressed": compressed},
                    environment=_PINNED,
                ),
            )
            for name, words, compressed in (("voxels", ", before compression", False), ("files", "", True))
        ),
    ]
    return [replace(one, repetitions=1) for one in found] if quick else found


def rate(way: str, stack: Stack) -> Measure:
    """Seconds to convert a stack with two processes, or to read its files with `cat` and decode them."""
    root, source = _prepared(stack)
    files = sorted((source / "brain").iterdir())

    def convert() -> float:
        use(root)
        _forget(root)
        more = ["--to", "preprocessed", "--plans-from", "510"] if way == "store" else []
        return seconds([*_CONVERT, str(source), *stack.arguments, *more])

    def read() -> float:
        start = time.perf_counter()
        with Path(os.devnull).open("wb") as nothing:
            subprocess.run(["cat", *map(str, files)], check=True, stdout=nothing)
        for file in files:
            tifffile.imread(file)
        return time.perf_counter() - start

    return read if way == "cat" else convert


def peak_memory(stack: Stack) -> Measure:
    """Megabytes of the largest process of a conversion to raw with two workers."""
    root, source = _prepared(stack)

    def measure() -> float:
        use(root)
        _forget(root)
        return peak_megabytes([*_CONVERT, str(source), *stack.arguments])

    return measure


def conversion_comparisons(quick: bool = False) -> list[Comparison]:
    """Conversion against reading alone, and against itself for a shallower stack."""
    small = Stack(slices=48, edge=128, tile=48, tiles=2, patch=16, different=8)
    base = small if quick else Stack(slices=512, edge=5632, tiles=32, different=24)
    zipped = (
        replace(base, compression="zlib")
        if quick
        else replace(base, slices=512, edge=2048, tiles=8, compression="zlib")
    )
    found = []
    for way, label in (("store", "to the tile store"), ("raw", "to raw")):
        for stack, kind in ((base, "uncompressed"), (zipped, "zlib")):
            found.append(
                Comparison(
                    name=f"convert_{way}_{kind}",
                    what=f"{stack.slices} {kind} slices of {stack.edge}², {stack.tiles} tiles of {stack.tile}³",
                    target=0.8,
                    repetitions=3 if way == "store" else 2,
                    ours=Side(
                        label=f"convert {label}, two processes",
                        start=rate,
                        arguments={"way": way, "stack": stack},
                        environment=_PINNED,
                    ),
                    other=Side(
                        label="cat the files, then decode them",
                        start=rate,
                        arguments={"way": "cat", "stack": stack},
                        environment=_PINNED,
                    ),
                )
            )
    shallow, deep = (
        (small, replace(small, slices=96))
        if quick
        else (Stack(slices=256, edge=768, tiles=9), Stack(slices=2048, edge=768, tiles=72))
    )
    found.append(
        Comparison(
            name="memory",
            what="peak memory of a conversion",
            unit="MB",
            target=0.9,
            repetitions=1,
            ours=Side(label=f"{deep.slices} slices", start=peak_memory, arguments={"stack": deep}, environment=_PINNED),
            other=Side(
                label=f"{shallow.slices} slices", start=peak_memory, arguments={"stack": shallow}, environment=_PINNED
            ),
        )
    )
    return [replace(one, repetitions=1) for one in found] if quick else found
