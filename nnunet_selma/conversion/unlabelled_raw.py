"""A raw nnU-Net dataset without labels becomes a tile store, because nnU-Net's own preprocessing needs labels with a foreground."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.conversion.preprocessed_dataset import PreprocessedDataset
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import check_like_plans, store_plans
from nnunet_selma.nnunet.raw_cases import raw_cases, raw_reader
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import is_volume, open_volume, parts_of, to_intensities


def has_foreground(dataset_folder: Path) -> bool:
    """True if every case of a raw dataset has a label, and at least one label holds a foreground; nnU-Net's fingerprint needs both.

    Raises:
        SelmaError: the dataset has no images.
    """
    cases = raw_cases(dataset_folder)
    if not all(Path(case["label"]).is_file() for case in cases.values()):
        return False
    reader = raw_reader(dataset_folder, cases)()
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
        SelmaError: the dataset and the plans differ in channels or contradict each other in voxel size, an image holds numbers that are not finite, the
            plans' normalisation is not supported, or the store exists already, made from other files.
    """
    target = folders.dataset(target_id)
    raw = folders.raw / target
    plans = store_plans(source_id, target, folders, plans_name=plans_name, configuration=configuration)
    check_like_plans(plans, configuration, target, folders)
    cases = raw_cases(raw)
    identity = {
        "source": raw,
        "files": {
            case: {path: fingerprint(*parts_of(Path(path))) for path in files["images"]}
            for case, files in cases.items()
        },
    }
    dataset = PreprocessedDataset(folders.preprocessed, target, plans, identity)
    if not dataset.staged.complete:
        reader = raw_reader(raw, cases)
        tasks = [
            _CaseTask(dataset, reader, case, tuple(files["images"]))
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
    reader: Any
    case: str
    files: tuple[str, ...]


def _store_case(task: _CaseTask) -> Generator[int, None, None]:
    """Read a case with nnU-Net's reader and write it into the store."""
    try:
        voxels, properties = task.reader().read_images(task.files)
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


def _check_whole(path: Path) -> None:
    """Raise `SelmaError` for a file that is cut short or holds NaN; nnU-Net's reader gives zeros there."""
    if is_volume(path):
        to_intensities(open_volume(path).read(), str(path))
