"""The check of a published folder: every fault becomes a sentence.

Nothing in the folder is trusted: checkpoints are read without running code first, and plans may name only networks and layers. nnU-Net, which
would run whatever they hold, sees only those that passed.

The card is compared with config.json where `card_check` says so; its other sentences are not judged.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY, network_identity
from nnunet_selma.nnunet.checkpoints import RECORD, adaptation_record
from nnunet_selma.nnunet.plans import channels_of, whole_configuration
from nnunet_selma.nnunet.voxel_sizes import planned_spacing
from nnunet_selma.prediction.model import trainers_registered
from nnunet_selma.sharing.buildable import plan_problems
from nnunet_selma.sharing.card_check import card_problems
from nnunet_selma.sharing.checkpoint_check import content_problems, twin_problems
from nnunet_selma.sharing.descriptions import FOLD, read_description
from nnunet_selma.sharing.publish import ADAPTATION, CARD, CONFIG, FINGERPRINT, LICENCE
from nnunet_selma.sharing.training_data import SPLITS

_NEEDED = ("plans.json", "dataset.json", CONFIG, LICENCE, CARD)
_EDGE = 32
"""Longest edge of the volume that is predicted, voxels."""
_UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    UnpicklingError,
    ValueError,
)
"""Errors of nnU-Net and PyTorch on files that do not fit each other."""


def problems_of(folder: Path) -> list[str]:
    """A sentence for each fault of a published folder; empty if it is complete.

    Raises:
        SelmaError: there is no such folder.
    """
    if not folder.is_dir():
        raise SelmaError(f"{folder}: there is no such folder; give one that nnunet-selma publish wrote")
    return list(dict.fromkeys(_Check(folder).problems()))


class _Check:
    """The files of a folder, as far as they can be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: list[str] = []
        self.plans, self.dataset, self.config, self.adaptation = (
            self._json(name) for name in ("plans.json", "dataset.json", CONFIG, ADAPTATION)
        )
        for name in (FINGERPRINT, SUMMARY):
            self._json(name)
        self._json(SPLITS, list)

    def _json(self, name: str, kind: type[Any] = dict) -> Any:
        """The content of a file; empty where it is lacking or faulty."""
        content, problems = read_description(self.folder / name, kind)
        self.unread += problems
        return content

    def problems(self) -> Iterator[str]:
        """All faults, files first."""
        for name in _NEEDED:
            if not (self.folder / name).is_file():
                yield f"{self.folder / name} is missing; publish anew"
        yield from self.unread
        contents: dict[str, Mapping[str, Any]] = {}
        for name, path in self._checkpoints().items():
            content = yield from content_problems(path)
            if content is not None:
                contents[name] = content
                yield from twin_problems(path)
        unfit = list(plan_problems(self.plans)) if self.plans else []
        yield from (f"{self.folder / 'plans.json'}: {problem}" for problem in unfit)
        if not unfit:
            yield from self._description_problems()
        if self.plans and self.dataset and not unfit:
            if self.pretraining:
                yield from self._pretraining_problems(contents)
            else:
                yield from self._prediction_problems(contents)
        yield from self._licence_problems()
        if (self.folder / CARD).is_file():
            text = (self.folder / CARD).read_text(encoding="utf-8", errors="replace")
            yield from (f"{self.folder / CARD}: {problem}" for problem in card_problems(text, self.config))

    @property
    def pretraining(self) -> bool:
        """True if the folder holds a pretraining, whose checkpoint is at the root."""
        kind = self.config.get("kind")
        return kind == "pretraining" or (kind is None and (self.folder / CHECKPOINT).is_file())

    def _checkpoints(self) -> dict[str, Path]:
        """Fold to its checkpoint; those that config.json names, and those that are there."""
        if self.pretraining:
            return {"": self.folder / CHECKPOINT}
        named = self.config.get("folds", [])
        folders = (path.name.removeprefix("fold_") for path in self.folder.glob("fold_*") if path.is_dir())
        there = sorted(fold for fold in folders if FOLD.fullmatch(fold))
        return {fold: self.folder / f"fold_{fold}" / CHECKPOINT for fold in dict.fromkeys([*named, *there])} or {
            "0": self.folder / "fold_0" / CHECKPOINT
        }

    def _description_problems(self) -> Iterator[str]:
        """Contradictions between config.json, plans.json and dataset.json."""
        if not self.config:
            return
        name, classes, network = (self.config[entry] for entry in ("configuration", "classes", "network_class_name"))
        if self.plans and name not in self.plans["configurations"]:
            yield f"{self.folder / 'plans.json'}: has no configuration {name}, which config.json names"
        elif self.plans:
            planned = network_identity(whole_configuration(self.plans, name))["network_class_name"]
            if planned != network:
                yield f"{self.folder / CONFIG}: names the network {network}, and plans.json {planned}"
        if self.dataset:
            labels = {k: v for k, v in self.dataset["labels"].items() if k not in ("background", "ignore")}
            if not self.pretraining and labels != classes:
                yield (
                    f"{self.folder / 'dataset.json'}: has {counted(len(labels), 'class', 'classes')} ({', '.join(labels) or 'none'}), and config.json has "
                    f"{len(classes)} ({', '.join(classes) or 'none'})"
                )

    def _prediction_problems(self, contents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Faults that nnU-Net's predictor meets: checkpoints that do not fit, and a small volume that cannot be predicted."""
        fitting, predictor = [], _predictor()
        with trainers_registered():
            for fold in contents:
                try:
                    with redirect_stdout(StringIO()):
                        predictor.initialize_from_trained_model_folder(str(self.folder), (fold,), CHECKPOINT)
                    fitting.append(fold)
                except _UNBUILDABLE as error:
                    yield self._misfit(f"fold_{fold}/{CHECKPOINT}", error)
            if fitting and len(fitting) == len(self._checkpoints()):
                try:
                    with redirect_stdout(StringIO()):
                        predictor.initialize_from_trained_model_folder(str(self.folder), tuple(fitting), CHECKPOINT)
                        yield from self._small_volume(predictor)
                except _UNBUILDABLE as error:
                    yield f"{self.folder}: nnU-Net cannot predict a small volume ({_in_one_line(error)})"

    def _small_volume(self, predictor: Any) -> Iterator[str]:
        """Predict a volume of random voxels, and look at the labels."""
        patch = tuple(predictor.configuration_manager.patch_size)
        edges = [min(edge, _EDGE) - axis for axis, edge in enumerate((2, *patch)[-3:])]
        shape = tuple(max(edge, 2) for edge in edges)
        image = np.random.default_rng(0).normal(size=(len(channels_of(self.dataset)), *shape)).astype(np.float32)
        spacing = planned_spacing(self.plans, predictor.configuration_manager.configuration)
        labels = predictor.predict_single_npy_array(image, {"spacing": spacing}, None, None, False)
        known = {0, *(int(each) for value in self.dataset["labels"].values() for each in np.ravel(value))}
        if labels.shape != shape:
            yield f"{self.folder}: a volume of {shape} voxels is predicted as {labels.shape}"
        elif not set(np.unique(labels).tolist()) <= known:
            yield f"{self.folder}: predicts labels that dataset.json does not have"

    def _pretraining_problems(self, contents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Faults of a pretraining: weights that do not fit the plans' network, or a plan of adaptation that is not theirs."""
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        configuration, channels = str(self.config.get("configuration")), len(channels_of(self.dataset))
        if configuration not in self.plans["configurations"]:
            return
        try:
            manager = PlansManager(self.plans)
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), channels, channels, False
            )
            planned = adaptation_record(network, self.plans, configuration, channels)
        except _UNBUILDABLE as error:
            yield f"{self.folder / 'plans.json'}: its network cannot be built ({_in_one_line(error)})"
            return
        content = contents.get("")
        if content is not None:
            try:
                network.load_state_dict(content["network_weights"])
            except _UNBUILDABLE as error:
                yield self._misfit(CHECKPOINT, error)
        yield from self._adaptation_problems(content, planned)

    def _adaptation_problems(
        self, content: Mapping[str, Any] | None, planned: Mapping[str, Any] | None
    ) -> Iterator[str]:
        """Faults of adaptation_plan.json, and of the same record in the checkpoint."""
        path = self.folder / ADAPTATION
        if planned is None:  # the network does not name its encoder
            if path.is_file():
                yield f"{path}: describes an encoder, which the network of plans.json does not name; remove it"
            return
        if not path.is_file():
            yield f"{path} is missing, without which nnU-Net's nnUNetv2_preprocess_like_nnssl takes no weights; publish anew"
            return
        written = {key: value for key, value in self.adaptation.items() if key != "trainer_name"}
        record = (content or {}).get(RECORD)
        if content is not None and not isinstance(record, Mapping):
            yield f"{self.folder / CHECKPOINT}: lacks the entry {RECORD}, without which nnU-Net's nnUNetv2_preprocess_like_nnssl fails"
        elif isinstance(record, Mapping) and record != written:
            yield f"{path}: differs from the record in {CHECKPOINT} ({_differing(record, written)})"
        if written.get("architecture_plans") != planned["architecture_plans"]:
            yield f"{path}: describes another network than plans.json"
        elif differing := _differing(planned, written):
            yield f"{path}: contradicts plans.json ({differing})"

    def _misfit(self, name: str, error: BaseException) -> str:
        return f"{self.folder / name}: does not fit the network of plans.json with the labels and channels of dataset.json ({_in_one_line(error)})"

    def _licence_problems(self) -> Iterator[str]:
        path, licence = self.folder / LICENCE, self.config.get("license")
        if path.is_file() and licence:
            text = path.read_text(encoding="utf-8", errors="replace")
            if licence not in text.lower():
                yield f"{path}: does not name {licence}, the licence in config.json"


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Names of the entries that differ."""
    keys = sorted(first.keys() | second.keys(), key=str)
    return ", ".join(str(key) for key in keys if _as_text(first.get(key)) != _as_text(second.get(key)))


def _as_text(value: Any) -> str:
    return json.dumps(value, default=str)


def _in_one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"


def _predictor() -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with redirect_stdout(StringIO()):  # nnU-Net prints that a CPU is no GPU
        return nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False
        )
