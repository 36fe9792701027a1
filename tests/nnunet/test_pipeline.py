import pytest

from nnunet_selma.nnunet.pipeline import Pipeline, Training, cpu_environment, quoted


@pytest.fixture
def pipeline(folders):
    """A pipeline whose commands are noted, not run."""
    (folders.raw / "Dataset510_A").mkdir(parents=True)
    done = []
    return Pipeline(
        folders=folders,
        environment={"nnUNet_n_proc_DA": "0"},
        run_command=lambda command, environment: done.append((list(command), dict(environment))),
    ), done


def test_a_path_with_blanks_stays_one_word(pipeline, tmp_path):
    runner, done = pipeline
    source = tmp_path / "two words; 'and' quotes"
    runner.convert_annotated(source)
    assert done[0][0] == ["nnunet-selma", "convert", "annotated", str(source), "-d", "510", "--spacing", "voxel"]
    assert [line for line, _ in runner.log] == [
        f"nnunet-selma convert annotated {quoted(source)} -d 510 --spacing voxel"
    ]


def test_a_command_may_replace_a_variable(pipeline):
    runner, done = pipeline
    runner.plan("2d", "3d_fullres")
    command, environment = done[0]
    assert " ".join(command).endswith("-c 2d 3d_fullres --verify_dataset_integrity -np 1 1 -npfp 1")
    assert environment == {"nnUNet_n_proc_DA": "1"}  # nnU-Net's planner fails at 0


def test_a_command_that_failed_is_not_in_the_log(folders):
    def fail(command, environment):
        raise RuntimeError

    runner = Pipeline(folders=folders, run_command=fail)
    with pytest.raises(RuntimeError):
        runner.settings(510, "nnUNetPlans", "finetuning.epochs=2")
    assert runner.log == []


@pytest.mark.parametrize("left", ["checkpoint_latest.pth", "checkpoint_final.pth"])
def test_a_killed_training_continues(pipeline, left):
    runner, done = pipeline
    training = Training(dataset_id=510, trainer="SelmaFinetuneTrainer", plans="nnUNetPlans")
    runner.train(training)
    folder = runner.fold_folder(training)
    assert folder.relative_to(runner.folders.results).as_posix() == (
        "Dataset510_A/SelmaFinetuneTrainer__nnUNetPlans__3d_fullres/fold_0"
    )
    folder.mkdir(parents=True)
    (folder / left).touch()
    runner.train(training)
    assert [command[-1] for command, _ in done] == ["cpu", "--c"]


def test_a_gpu_keeps_nnunets_loading_processes(tmp_path):
    assert "nnUNet_n_proc_DA" not in cpu_environment(tmp_path, "cuda")
    assert cpu_environment(tmp_path, "cpu")["nnUNet_n_proc_DA"] == "0"
