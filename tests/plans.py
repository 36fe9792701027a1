"""Plans for tests, and the networks they configure."""

from typing import Any

from benchmarks.plans import ARCHITECTURES, plans

__all__ = ["ARCHITECTURES", "network", "plans"]


def network(content: dict[str, Any], *, input_channels: int = 1, pretraining: bool = True) -> Any:
    """The network of plans: for pretraining, or for a segmentation with two classes."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_selma.trainers.ssl import SelmaSSLTrainer

    manager = PlansManager(content)
    configuration = manager.get_configuration(next(iter(content["configurations"])))
    build = SelmaSSLTrainer.build_pretext_network if pretraining else nnUNetTrainer.build_network_architecture
    return build(manager, configuration, input_channels, 2, True)
