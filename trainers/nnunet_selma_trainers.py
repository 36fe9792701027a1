"""Point nnUNet_extTrainer at this folder: nnU-Net then finds SelmaSSLTrainer and SelmaFinetuneTrainer."""

from nnunet_selma.trainers import __getattr__ as __getattr__
