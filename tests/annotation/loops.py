"""An annotation loop in which time passes, and the files that nnU-Net leaves in it."""

import os
from datetime import datetime, timedelta

from nnunet_selma.annotation.next_commands import next_commands
from nnunet_selma.annotation.rounds import standing
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.datasets import DATASET, convert
from tests.annotation.folders import blobs, paint

MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def annotate(source, rng, *numbers):
    for number in numbers:
        paint(source, f"cube_{number:04d}", blobs(rng))


def at(path, moment):
    os.utime(path, (moment.timestamp(),) * 2)


class Clock:
    """Moments one minute apart, which begin with the last version of a dataset."""

    def __init__(self, folders):
        self.folders = folders
        history = read_json(folders.raw / DATASET / "selma_manifest.json")["history"]
        self.moment = datetime.fromisoformat(history[-1]["date"])

    def next(self):
        self.moment += timedelta(minutes=1)
        return self.moment

    def convert_again(self):
        """Move the last version of the dataset to the next moment."""
        file = self.folders.raw / DATASET / "selma_manifest.json"
        content = read_json(file)
        content["history"][-1]["date"] = self.next().isoformat()
        write_json(file, content)

    def preprocess(self):
        """The files that nnU-Net's preprocessing leaves."""
        folder = self.folders.preprocessed / DATASET / "nnUNetPlans_3d_fullres"
        folder.mkdir(exist_ok=True)
        (folder.parent / "nnUNetPlans.json").write_text("{}")
        moment = self.next()
        for case in read_json(self.folders.raw / DATASET / "selma_manifest.json")["cases"]:
            (folder / f"{case}.pkl").touch()
            at(folder / f"{case}.pkl", moment)

    def train(self, fold, dice=None, *, finished=True):
        """The files that nnU-Net's training of a fold leaves; `dice` is case to Dice."""
        folder = self.folders.results / DATASET / MODEL / f"fold_{fold}"
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        names = ["debug.json", *(["checkpoint_final.pth"] if finished else [])]
        for name in names:
            (folder / name).touch()
            at(folder / name, self.next())
        if dice is not None:
            cases = [
                {"metrics": {"1": {"Dice": value}}, "reference_file": f"/gt/{case}.nii.gz", "prediction_file": "p"}
                for case, value in dice.items()
            ]
            write_json(folder / "validation/summary.json", {"metric_per_case": cases})
            at(folder / "validation/summary.json", self.next())


def commands(source, folders):
    return [line for line in next_commands(standing(510, folders, source)) if not line.startswith("#")]


def trained(source, folders, rng):
    annotate(source, rng, 1, 2, 3)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    for fold, dice in enumerate([{"cube_0001": 0.5}, {"cube_0002": 0.25}, {"cube_0003": 0.75}]):
        clock.train(fold, dice)
    return clock
