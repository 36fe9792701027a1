"""Which parts of structure-aware inpainting help: arms that differ in one setting each, on nnU-Net's own network, over seeds.

    python -m benchmarks.structure_aware --data DELIVR SELMA3D_CROPS --unlabelled MORE -o study

What came out is in docs/results.md. A run that was killed goes on. No part of `make bench`: it takes the better part of an hour.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_selma.challenge import Arm, Challenge
from nnunet_selma.challenge.data import arrange
from nnunet_selma.recipes import RECIPES, from_scratch, run_length

OURS = RECIPES["ours"]
PLAIN = replace(OURS, name="inpainting", pretext="SelmaSSLTrainer")


def _ours(name: str, **structure: float) -> Arm:
    return Arm(name=name, recipe=OURS, changes={"structure": structure})


ARMS = [
    Arm(name="ours-scratch", recipe=from_scratch(OURS), changes={}),
    Arm(name="inpainting", recipe=PLAIN, changes={}),
    _ours("asinh-only", preference=0.0, weight=0.0),
    _ours("masks", preference=1.0, weight=0.0),
    _ours("weights", preference=0.0, weight=1.0),
    _ours("masks+weights", preference=1.0, weight=1.0),
]
PAIRS = [
    (arm.name, other)
    for other in ("ours-scratch", "inpainting")
    for arm in ARMS
    if arm.name not in ("ours-scratch", other)
]
"""Each arm against random weights and, those of ours, against plain inpainting."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--unlabelled", type=Path, nargs="+", default=[])
    parser.add_argument("-o", dest="output", type=Path, default=Path("study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of 24 steps, in pretraining and in fine-tuning")
    parser.add_argument("--test-patches", type=int, default=3, help="of each test structure")
    chosen = parser.parse_args(arguments)
    data = arrange(chosen.data, chosen.unlabelled, chosen.output / "data", test_patches=chosen.test_patches)
    length = run_length(chosen.epochs, 24, every=100)
    challenge = Challenge(
        data=data, output=chosen.output, arms=ARMS, seeds=chosen.seeds, say=print,
        changes={"pretraining": length, "finetuning": {**length, "validation_iterations": 1}},
    )  # fmt: skip
    print(f"tables: {challenge.run(PAIRS)}")


if __name__ == "__main__":
    main()
