"""The real nnU-Net commands on a tiny synthetic download."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_selma.nnunet import commands

pytestmark = pytest.mark.xdist_group("workspace")

SSL = "nnUNet_results/Dataset500_*/SelmaSSLTrainer__nnUNetSmallPlans_from510__3d_fullres/fold_all"
FINETUNED = "nnUNet_results/Dataset510_*/SelmaFinetuneTrainer__nnUNetSmallPlans__3d_fullres/fold_0"


STOCK = """if True:
    import sys
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    trainer = get_trainer_from_args("510", "3d_fullres", 0, "nnUNetTrainer", "nnUNetSmallPlans", device=torch.device("cpu"))
    maybe_load_checkpoint(trainer, False, False, sys.argv[1])
    torch.save(trainer.network.state_dict(), sys.argv[2])
"""
"""The steps of nnUNetv2_train with -pretrained_weights, up to the training."""


class TestReport:
    def test_it_ties_everything_together(self, workspace):
        page = workspace.report.read_text()
        scores = [f"evaluation_{year}/{name}" for year in (2024, 2026) for name in ("cases.csv", "scores.png")]
        for name in ("segmentation.png", "finetuning.png", "pretraining.png", "reconstruction.png", *scores):
            assert f'"{name}"' in page
            assert (workspace.report.parent / name).stat().st_size > 100
        for command in ("nnUNetv2_plan_and_preprocess", "SelmaSSLTrainer", "SelmaFinetuneTrainer", "nnUNetv2_predict"):
            assert command in page

    def test_its_dice_is_that_of_the_files(self, workspace):
        table = (workspace.report.parent / "evaluation_2024" / "cases.csv").open(encoding="utf-8")
        rows = [row for row in csv.DictReader(table) if row["method"] == "with pretraining"]
        assert {row["case"].rsplit("_", 1)[0] for row in rows} == {
            "AD_plaques",
            "blood_vessel",
            "cell_nuclei",
            "cfos_neuron",
            "microglia",
        }
        for row in rows:
            truth, prediction = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(workspace.output / folder / f"{row['case']}.nii.gz")))
                for folder in ("test/references", "predictions/with_pretraining")
            )
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(sitk.GetImageFromArray(truth), sitk.GetImageFromArray(prediction))
            assert float(row["dice"]) == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-6)

    def test_every_case_has_a_sheet(self, workspace):
        sheets = workspace.report.parent / "evaluation_2024" / "sheets" / "with pretraining"
        references = {path.name.removesuffix(".nii.gz") for path in (workspace.output / "test/references").iterdir()}
        assert {path.stem for path in sheets.iterdir()} == references


class TestPretraining:
    def test_the_summary_tells_what_finetuning_must_know(self, workspace):
        summary = json.loads((workspace.path(SSL) / "ssl_summary.json").read_text())
        assert (summary["trainer"], summary["pretext"], summary["epochs"]) == ("SelmaSSLTrainer", "MaskedInpainting", 3)
        assert summary["versions"]["nnunetv2"].startswith("2.8.")
        assert summary["network"]["arch_kwargs"]["features_per_stage"] == [4, 8, 8]
        assert all(np.isfinite(v).all() and len(v) == 3 for v in summary["history"].values())

    def test_no_dice_is_shown(self, workspace):
        (log,) = workspace.path(SSL).glob("training_log*.txt")
        assert "dice" not in log.read_text().lower().replace("'batch_dice'", "")  # a field of every plan
        assert (workspace.path(SSL) / "reconstruction.png").is_file()

    def test_keys_are_those_of_the_segmentation_network(self, workspace):
        pretrained, finetuned = (
            torch.load(workspace.path(run) / "checkpoint_final.pth", weights_only=False)["network_weights"]
            for run in (SSL, FINETUNED)
        )
        assert pretrained.keys() == finetuned.keys()
        assert all(pretrained[k].shape == finetuned[k].shape for k in pretrained if ".seg_layers." not in k)

    def test_an_interrupted_run_goes_on_to_the_same_curve(self, workspace, tmp_path):
        """Killed with SIGKILL after a checkpoint, continued with --c: every loss equals that of the undisturbed run."""
        workspace.settings(500, "nnUNetSmallPlans_from510", "pretraining.epochs=8", "pretraining.save_every=1")
        results = tmp_path / "results"
        train = [
            "nnUNetv2_train",
            "500",
            "3d_fullres",
            "all",
            "-tr",
            "SelmaSSLTrainer",
            "-p",
            "nnUNetSmallPlans_from510",
            "-device",
            "cpu",
        ]
        environment = {**os.environ, **workspace.environment, "nnUNet_results": str(results)}
        with subprocess.Popen(
            [commands.program(train[0]), *train[1:]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as run:
            deadline = time.monotonic() + 240
            while not list(results.glob("*/*/fold_all/checkpoint_latest.pth")):
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            run.send_signal(signal.SIGKILL)
        assert not list(results.glob("*/*/fold_all/checkpoint_final.pth"))
        assert workspace.run(*train, "--c", nnUNet_results=str(results)).returncode == 0
        # which weight gradient was faster is measured, and kept beside the checkpoints: the same machine, the same choice
        (trials,) = results.glob("*/*/fold_all/cpu_trials.json")
        kept = tmp_path / "undisturbed" / trials.relative_to(results)
        kept.parent.mkdir(parents=True)
        shutil.copy(trials, kept)
        assert workspace.run(*train, nnUNet_results=str(tmp_path / "undisturbed")).returncode == 0
        resumed, undisturbed = (
            json.loads(next(root.glob("*/*/fold_all/ssl_summary.json")).read_text())["history"]
            for root in (results, tmp_path / "undisturbed")
        )
        assert len(resumed["train_losses"]) == 8
        assert resumed == undisturbed

    def test_tiles_written_straight_to_the_store_are_trained_on(self, workspace, tmp_path):
        """No raw copy, no nnU-Net preprocessing: from the volumes to a checkpoint by two commands."""
        convert = [
            "nnunet-selma",
            "convert",
            "unannotated",
            str(workspace.output / "download"),
            "-d",
            "503",
            "--spacing",
            "voxel",
        ]
        store = [
            "--to",
            "preprocessed",
            "--plans-from",
            "510",
            "-p",
            "nnUNetSmallPlans",
            "--tile",
            "32",
            "--tiles-per-volume",
            "2",
        ]
        done = workspace.run(*convert, *store)
        assert done.returncode == 0, done.stderr
        train = done.stdout.split("next: ")[1].split()
        assert train == [
            "nnUNetv2_train",
            "503",
            "3d_fullres",
            "all",
            "-tr",
            "SelmaSSLTrainer",
            "-p",
            "nnUNetSmallPlans_from510_store",
        ]
        run = ("pretraining.epochs=2", "pretraining.iterations_per_epoch=2", "pretraining.validation_iterations=1")
        workspace.settings(503, "nnUNetSmallPlans_from510_store", *run)
        done = workspace.run(*train, "-device", "cpu", nnUNet_results=str(tmp_path))
        assert done.returncode == 0, done.stderr
        (summary,) = tmp_path.glob("Dataset503_*/*/fold_all/ssl_summary.json")
        assert np.isfinite(json.loads(summary.read_text())["history"]["train_losses"]).all()

    @pytest.mark.slow
    def test_two_dimensional_plans_with_a_loading_process(self, workspace):
        done = workspace.run(
            "nnunet-selma",
            "plan-pretraining",
            "-s",
            "510",
            "-t",
            "500",
            "-p",
            "nnUNetPlans",
            "-c",
            "2d",
            "--workers",
            "1",
        )
        assert done.returncode == 0, done.stderr
        workspace.settings(
            500,
            "nnUNetPlans_from510",
            "pretraining.epochs=1",
            "pretraining.iterations_per_epoch=2",
            "pretraining.validation_iterations=1",
        )
        done = workspace.run(
            "nnUNetv2_train",
            "500",
            "2d",
            "all",
            "-tr",
            "SelmaSSLTrainer",
            "-p",
            "nnUNetPlans_from510",
            "-device",
            "cpu",
            nnUNet_n_proc_DA="1",
        )
        assert done.returncode == 0, done.stderr
        assert workspace.path("nnUNet_results/Dataset500_*/*__2d/fold_all/reconstruction.png").is_file()

    def test_stock_nnunet_takes_the_checkpoint(self, workspace, tmp_path):
        """Stock nnU-Net, asked for `-pretrained_weights`, begins with the pretrained weights; only its heads are new."""
        pretraining = workspace.path(SSL) / "checkpoint_final.pth"
        done = workspace.run(
            "python",
            "-c",
            STOCK,
            str(pretraining),
            str(tmp_path / "weights.pth"),
            nnUNet_results=str(tmp_path),
            nnUNet_extTrainer=None,
        )
        assert done.returncode == 0, done.stderr
        assert "Loading pretrained weights" in done.stdout
        loaded = torch.load(tmp_path / "weights.pth")
        pretrained = torch.load(pretraining, weights_only=False)["network_weights"]
        heads = {key for key in loaded if ".seg_layers." in key}
        assert heads
        assert loaded.keys() == pretrained.keys()
        assert all(torch.equal(loaded[key], pretrained[key]) for key in loaded.keys() - heads)


class TestFinetuning:
    def test_the_report_of_the_transfer_is_printed(self, workspace):
        (log,) = workspace.path(FINETUNED).glob("training_log*.txt")
        text = log.read_text()
        assert "100.0% of the parameters below the heads come from pretraining" in text
        assert str(workspace.path(SSL) / "checkpoint_final.pth") in text
        assert "does not mirror" in text

    def test_a_bare_nnunet_predicts_with_it(self, workspace, tmp_path):
        """No plugin in sight: nnUNet_extTrainer is unset, and the answer is the one with the plugin."""
        checkpoint = torch.load(workspace.path(FINETUNED) / "checkpoint_final.pth", weights_only=False)
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        done = workspace.run(
            "nnUNetv2_predict",
            "-d",
            "510",
            "-i",
            str(workspace.output / "test" / "images"),
            "-o",
            str(tmp_path),
            "-f",
            "0",
            "-p",
            "nnUNetSmallPlans",
            "-tr",
            "SelmaFinetuneTrainer",
            "-c",
            "3d_fullres",
            "-device",
            "cpu",
            "--disable_tta",
            "-npp",
            "1",
            "-nps",
            "1",
            nnUNet_extTrainer=None,
        )
        assert done.returncode == 0, done.stderr
        for path in (workspace.output / "predictions" / "with_pretraining").glob("*.nii.gz"):
            np.testing.assert_array_equal(
                *(sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (path, tmp_path / path.name))
            )

    def test_going_on_and_validating_need_no_pretrained_file(self, workspace, tmp_path):
        """With the pretraining gone, --c goes on from the checkpoint alone, and validates."""
        gone = workspace.path(SSL).parent
        hidden = gone.rename(gone.with_name("hidden"))
        try:
            done = workspace.run(
                "nnUNetv2_train",
                "510",
                "3d_fullres",
                "0",
                "-tr",
                "SelmaFinetuneTrainer",
                "-p",
                "nnUNetSmallPlans",
                "-device",
                "cpu",
                "--c",
            )
        finally:
            hidden.rename(gone)
        assert done.returncode == 0, done.stderr
        assert "nothing is carried over" in done.stdout
        assert "Validation complete" in done.stdout

    @pytest.mark.slow
    def test_a_model_without_final_validation_is_exported_and_installed(self, workspace, tmp_path):
        """nnU-Net's export demands a summary of the validation; nnUNetv2_find_best_configuration still refuses the fold."""
        trained = workspace.path(FINETUNED).parent
        model = tmp_path / "results" / trained.parent.name / trained.name
        shutil.copytree(trained, model, ignore=shutil.ignore_patterns("validation"))
        names = ("-d", "510", "-c", "3d_fullres", "-tr", "SelmaFinetuneTrainer", "-p", "nnUNetSmallPlans", "-f", "0")
        export = ["nnUNetv2_export_model_to_zip", "-o", str(tmp_path / "model.zip"), *names]
        assert workspace.run(*export, nnUNet_results=str(tmp_path / "results")).returncode != 0
        train = ["nnUNetv2_train", "510", "3d_fullres", "0", "-tr", "SelmaFinetuneTrainer", "-p", "nnUNetSmallPlans"]
        workspace.settings(510, "nnUNetSmallPlans", "finetuning.final_validation=false")
        try:
            done = workspace.run(*train, "-device", "cpu", "--val", nnUNet_results=str(tmp_path / "results"))
        finally:
            workspace.settings(510, "nnUNetSmallPlans", "finetuning.final_validation=true")
        assert done.returncode == 0, done.stderr
        done = workspace.run(*export, nnUNet_results=str(tmp_path / "results"))
        assert done.returncode == 0, done.stderr
        (tmp_path / "installed").mkdir()
        install = ["nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip")]
        done = workspace.run(*install, nnUNet_results=str(tmp_path / "installed"))
        assert done.returncode == 0, done.stderr
        installed = tmp_path / "installed" / model.relative_to(tmp_path / "results")
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_0/validation/summary.json"):
            assert (installed / name).read_bytes() == (model / name).read_bytes()
        best = ["nnUNetv2_find_best_configuration", *(name for name in names if name != "-d"), "--disable_ensembling"]
        done = workspace.run(*best, "-np", "1", nnUNet_results=str(tmp_path / "results"))
        assert done.returncode != 0
        assert "not_validated" in done.stdout + done.stderr

    def test_a_checkpoint_that_would_run_code_ends_with_a_sentence(self, workspace, tmp_path):
        """The other sentences about unusable checkpoints are those of tests/finetuning; all of them leave nnU-Net's command this way."""
        path = tmp_path / "weights.pth"
        torch.save({"network_weights": {"a": torch.ones(1)}, "x": _Malicious(tmp_path / "executed")}, path)
        workspace.settings(510, "nnUNetSmallPlans", f"finetuning.pretrained={path}")
        try:
            done = workspace.run(
                "nnUNetv2_train",
                "510",
                "3d_fullres",
                "0",
                "-tr",
                "SelmaFinetuneTrainer",
                "-p",
                "nnUNetSmallPlans",
                "-device",
                "cpu",
                nnUNet_results=str(tmp_path),
            )
        finally:
            workspace.settings(510, "nnUNetSmallPlans", "finetuning.pretrained=newest")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert f"nnunet-selma: {path}" in done.stderr
        assert "refused" in done.stderr
        assert not (tmp_path / "executed").exists()
        assert not list(tmp_path.rglob("checkpoint_*.pth"))


class _Malicious:
    def __init__(self, executed):
        self.executed = executed

    def __reduce__(self):
        return os.system, (f"touch '{self.executed}'",)
