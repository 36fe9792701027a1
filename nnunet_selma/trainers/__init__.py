"""The trainers that nnU-Net finds by name; each is imported only when it is used.

nnU-Net looks for a class in a module with `hasattr`, for which a module-level `__getattr__` over this table is enough. A trainer whose
optional extra is missing then does not hide the others.
"""

from importlib import import_module
from typing import Any

TRAINERS = {
    "SelmaSSLTrainer": "nnunet_selma.trainers.ssl",
    "SelmaSSLTrainer_StructureAware": "nnunet_selma.trainers.pretexts",
    "SelmaSSLTrainer_BYOL": "nnunet_selma.trainers.pretexts",
    "SelmaSSLTrainer_SimCLR": "nnunet_selma.trainers.pretexts",
    "SelmaSSLTrainer_MultiTask": "nnunet_selma.trainers.pretexts",
    "SelmaSSLTrainer_SelfDistillation": "nnunet_selma.trainers.pretexts",
    "SelmaFinetuneTrainer": "nnunet_selma.trainers.finetune",
    "SelmaFinetuneTrainer_FrozenEncoder": "nnunet_selma.trainers.strategies",
    "SelmaFinetuneTrainer_Unfreezing": "nnunet_selma.trainers.strategies",
    "SelmaFinetuneTrainer_LoRA": "nnunet_selma.trainers.strategies",
}


def __getattr__(name: str) -> Any:
    if name not in TRAINERS:
        raise AttributeError(f"nnunet_selma has no trainer {name!r}; it has {', '.join(TRAINERS)}")
    return getattr(import_module(TRAINERS[name]), name)
