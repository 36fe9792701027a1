"""Every recipe, and each of its networks from random weights, by the real commands, on a synthetic challenge."""

import os
import subprocess
import sys

import pytest

from nnunet_selma.recipes.recipes import RECIPES

PROGRAM = """if True:
    from pathlib import Path
    from nnunet_selma.recipes.challenge import Challenge, usual_arms
    from nnunet_selma.demo.drawing import Drawing
    from nnunet_selma.recipes.challenge.data import draw
    from nnunet_selma.recipes.recipes import run_length
    drawing = Drawing(
        annotated={{"cfos_neuron": 2, "blood_vessel": 1}}, tested=("cfos_neuron", "microglia"), patch_edge=32,
        brain_shape=(32, 48, 48), test_patches=1
    )
    output = Path({output!r})
    short = run_length(1, 2, validation=1)
    Challenge(
        data=draw(output / "data", seed=0, drawing=drawing, tile=32, tiles_per_volume=2), output=output, arms=usual_arms(), seeds=1,
        say=print, changes={{"pretraining": short, "finetuning": short}},
    ).run()
"""


@pytest.mark.slow
@pytest.mark.xdist_group("challenge")
class TestChallenge:
    @pytest.fixture(scope="class")
    @staticmethod
    def output(tmp_path_factory):
        return tmp_path_factory.mktemp("challenge")

    @staticmethod
    def run(output):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet")}
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(output=str(output))],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_every_row_is_trained_predicted_and_scored(self, output):
        done = self.run(output)
        assert done.returncode == 0, done.stderr[-3000:]
        page = (output / "results.md").read_text(encoding="utf-8")
        arms = [*RECIPES, *(f"{name}-scratch" for name in RECIPES)]
        for arm in arms:
            assert f"| {arm} |" in page
            assert {path.name for path in (output / "predictions" / arm / "seed_0").glob("*.nii.gz")} == {
                "cfos_neuron_900.nii.gz",
                "microglia_900.nii.gz",
            }
        budgets = [
            line.split("|")[2:4]
            for line in page.split("## Budget")[1].splitlines()
            if line.startswith("| ") and "arm" not in line
        ]
        assert {tuple(cell.strip() for cell in cells) for cells in budgets if "---" not in cells[0]} == {
            ("2", "2"),
            ("0", "2"),
        }
        summaries = list((output / "workspace" / "nnUNet_results").glob("*/*/fold_all/ssl_summary.json"))
        assert len(summaries) == len(RECIPES)

    def test_a_second_run_trains_nothing(self, output):
        if not (output / "results.md").is_file():
            pytest.skip("the first run did not end")
        before = (output / "results.md").read_text(encoding="utf-8")
        done = self.run(output)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "$ nnUNetv2_train" not in done.stdout
        assert "$ nnUNetv2_predict" not in done.stdout
        assert (output / "results.md").read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.xdist_group("workspace")
def test_a_recipe_runs_on_datasets_that_are_there(workspace, tmp_path):
    short = [
        f"{s}.{k}"
        for s in ("pretraining", "finetuning")
        for k in ("epochs=1", "iterations_per_epoch=2", "validation_iterations=1")
    ]
    recipe = [
        "nnunet-selma",
        "recipe",
        "run",
        "zoomlin",
        "-s",
        "510",
        "-t",
        "500",
        "--scale",
        "tiny",
        "--device",
        "cpu",
        "--set",
        *short,
    ]
    done = workspace.run(*recipe, nnUNet_results=str(tmp_path), nnUNet_n_proc_DA="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters below the heads come from pretraining" in done.stdout
    command = done.stdout.split("predict with: ")[1].split()
    images, output = workspace.output / "test" / "images", tmp_path / "predicted"
    command[command.index("IN")], command[command.index("OUT")] = str(images), str(output)
    done = workspace.run(
        *command, "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0", nnUNet_results=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(output.glob("*.nii.gz"))) == len(list(images.glob("*.nii.gz")))
