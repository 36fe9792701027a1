"""A raw nnU-Net dataset without labels becomes a tile store, because nnU-Net's own preprocessing needs labels with a foreground."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.conversion.preprocessed_dataset import PreprocessedDataset
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import check_like_datasets, store_plans
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import is_volume, open_volume, to_intensities


def has_foreground(dataset_folder: Path) -> bool:
    """True if every case of a raw dataset has a label, and at least one label holds a foreground; nnU-Net's fingerprint needs both.

    Raises:
        SelmaError: the dataset has no images.
    """
    cases, reader = _cases(dataset_folder), _reader(dataset_folder)
    if not all(Path(case["label"]).is_file() for case in cases.values()):
        return False
    return any((reader.read_seg(case["label"])[0] > 0).any() for case in cases.values())


def store_unlabelled(
    source_id: int,
    target_id: int,
    folders: Folders,
    *,
    plans_name: str,
    configuration: str,
    workers: int = 1,
    progress: Progress[Any] = silent,
) -> str:
    """Write the images of a raw dataset as a tile store with the plans of the annotated dataset; returns the name of the new plans.

    Each process holds one case in memory; `convert_unannotated` cuts larger volumes into tiles. The next run continues one that was killed.

    Args:
        source_id: id of the annotated dataset, already planned.
        target_id: id of the raw dataset; its labels are not read.
        folders: nnU-Net's folders.
        plans_name: name of the plans of the annotated dataset.
        configuration: configuration of these plans.
        workers: number of processes.
        progress: shows the cases.

    Raises:
        SelmaError: the two datasets differ in channels or in the unit of their spacing, an image holds numbers that are not finite, the
            plans' normalisation is not supported, or the store exists already, made from other files.
    """
    source, target = folders.dataset(source_id), folders.dataset(target_id)
    raw = folders.raw / target
    plans = store_plans(source_id, target, folders, plans_name=plans_name, configuration=configuration)
    check_like_datasets(source, target, folders)
    cases = _cases(raw)
    identity = {
        "source": raw,
        "files": {case: [_stamp(path) for path in files["images"]] for case, files in cases.items()},
    }
    dataset = PreprocessedDataset(folders.preprocessed, target, plans, identity)
    if not dataset.staged.complete:
        tasks = [
            _CaseTask(dataset, raw, case, tuple(files["images"]))
            for case, files in cases.items()
            if not dataset.staged.has(case)
        ]
        run_tasks(_store_case, tasks, steps=len(tasks), workers=workers, label="storing cases", progress=progress)
        dataset.finish(
            channels=list(read_json(raw / "dataset.json")["channel_names"].values()),
            foreground="tissue",
            description="images of a raw dataset without labels",
            facts={},
        )
    return str(plans["plans_name"])


@dataclass(frozen=True)
class _CaseTask:
    """A case that is to be stored."""

    dataset: PreprocessedDataset
    raw: Path
    case: str
    files: tuple[str, ...]


def _store_case(task: _CaseTask) -> Generator[int, None, None]:
    """Read a case with nnU-Net's reader and write it into the store."""
    try:
        voxels, properties = _reader(task.raw).read_images(task.files)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise SelmaError(
            f"{', '.join(task.files)}: nnU-Net cannot read the image ({error}); repair or remove it"
        ) from error
    z, y, x = (float(size) for size in properties["spacing"])
    # a file of a colour image holds several channels
    paths = task.files if len(task.files) == len(voxels) else task.files[:1] * len(voxels)
    images = [to_intensities(np.asarray(channel), path) for channel, path in zip(voxels, paths, strict=True)]
    if voxels.shape[1] > 1:
        for path in task.files:
            _check_whole(Path(path))
    task.dataset.write(task.case, images, None, (z, y, x), {"spacing_zyx": [z, y, x]})
    yield 1


def _stamp(path: str) -> list[Any]:
    """Path, size and time of change of a file, which differ between two files of the same name."""
    facts = Path(path).stat()
    return [path, facts.st_size, facts.st_mtime_ns]


def _check_whole(path: Path) -> None:
    """Raise `SelmaError` for a file that is cut short or holds NaN; nnU-Net's reader gives zeros there."""
    if is_volume(path):
        to_intensities(open_volume(path).read(), str(path))


def _cases(dataset_folder: Path) -> dict[str, dict[str, Any]]:
    """Case to the files of its channels and of its label, from nnU-Net's own listing."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    path, images = dataset_folder / "dataset.json", dataset_folder / "imagesTr"
    description = read_json(path)
    for entry in description.get("dataset", {}).values():
        entry.setdefault("label", "")  # nnU-Net needs the key
    cases: dict[str, dict[str, Any]] = {}
    if "dataset" in description or images.is_dir():
        cases = get_filenames_of_train_images_and_targets(str(dataset_folder), description)
    if not cases:
        raise SelmaError(
            f"{images}: holds no images that end in {description['file_ending']}, as {path} says; put the images there, named "
            "<case>_0000 for the first channel"
        )
    return cases


def _reader(dataset_folder: Path) -> Any:
    """nnU-Net's reader of the images and labels of a raw dataset."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    return determine_reader_writer_from_dataset_json(read_json(dataset_folder / "dataset.json"), verbose=False)()
