"""Cases of a raw nnU-Net dataset, made here or elsewhere: their files, and nnU-Net's reader for them."""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json


def raw_cases(dataset_folder: Path) -> dict[str, dict[str, Any]]:
    """Case to the files of its channels and of its label, from nnU-Net's own listing; raises `SelmaError` if there are none."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    path, images = dataset_folder / "dataset.json", dataset_folder / "imagesTr"
    description = read_json(path)
    if "file_ending" not in description:
        raise SelmaError(f'{path}: names no file_ending; add it, as in "file_ending": ".nii.gz"')
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
    return {str(case): files for case, files in cases.items()}


def raw_reader(dataset_folder: Path, cases: dict[str, dict[str, Any]]) -> Any:
    """The class of nnU-Net's reader for a dataset: as in nnU-Net, the first one that can read the first image.

    Raises:
        SelmaError: no reader can.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    description, example = read_json(dataset_folder / "dataset.json"), next(iter(cases.values()))["images"][0]
    try:
        with redirect_stderr(StringIO()):  # nnU-Net prints the traceback of each reader that cannot
            return determine_reader_writer_from_dataset_json(description, example, verbose=False)
    except RuntimeError as error:
        raise SelmaError(f"{example}: nnU-Net cannot read the image ({error}); repair or remove it") from error
