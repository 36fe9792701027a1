"""One trainer for each pretext task: `SelmaSSLTrainer` with another task and another folder of results."""

from nnunet_selma.trainers.ssl import SelmaSSLTrainer


class SelmaSSLTrainer_StructureAware(SelmaSSLTrainer):
    """Inpainting whose masks and errors prefer blobs and tubes."""

    pretext_class = "nnunet_selma.pretraining.structure.StructureInpainting"


class SelmaSSLTrainer_BYOL(SelmaSSLTrainer):
    """BYOL (Zoomlin of SELMA3D 2024); trains the encoder."""

    pretext_class = "nnunet_selma.pretraining.byol.Byol"


class SelmaSSLTrainer_SimCLR(SelmaSSLTrainer):
    """SimCLR (Wu of SELMA3D 2024); trains the encoder."""

    pretext_class = "nnunet_selma.pretraining.simclr.Simclr"


class SelmaSSLTrainer_MultiTask(SelmaSSLTrainer):
    """Inpainting, rotation, contrast and the structure of the case at once (bioAI of SELMA3D 2024)."""

    pretext_class = "nnunet_selma.pretraining.multitask.MultiTask"


class SelmaSSLTrainer_SelfDistillation(SelmaSSLTrainer):
    """DINO and iBOT in 3D (Tonyxu of SELMA3D 2024); trains the encoder."""

    pretext_class = "nnunet_selma.pretraining.distillation.SelfDistillation"
