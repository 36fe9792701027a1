from dataclasses import replace

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY
from nnunet_selma.nnunet.pipeline import Pipeline
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.recipes.recipes import RECIPES, from_scratch
from nnunet_selma.recipes.running import RecipeRun
from nnunet_selma.running.json_files import read_json, write_json
from tests.plans import plans


@pytest.fixture
def run(folders):
    """A run on two datasets whose data are there; the commands are noted, not run, and leave what training would."""
    for dataset, name in (("Dataset510_A", "nnUNetPlans"), ("Dataset500_B", "nnUNetPlans_from510")):
        content = {**plans("128×128×112"), "plans_name": name}
        write = folders.preprocessed / dataset
        (write / content["configurations"]["3d_fullres"]["data_identifier"]).mkdir(parents=True)
        write_json(write / f"{name}.json", content)
    done = []

    def note(command, environment):
        done.append(list(command))
        if command[0] == "nnUNetv2_train":
            trainer, name = command[command.index("-tr") + 1], command[command.index("-p") + 1]
            dataset = {"510": "Dataset510_A", "500": "Dataset500_B"}[command[1]]
            folder = folders.results / dataset / f"{trainer}__{name}__{command[2]}" / f"fold_{command[3]}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SUMMARY).write_text("{}")
            (folder / CHECKPOINT).touch()

    pipeline = Pipeline(folders=folders, annotated_id=510, unlabelled_id=500, device="cpu", run_command=note)
    return RecipeRun(
        recipe=RECIPES["zoomlin"], pipeline=pipeline, scale="tiny", changes={"finetuning": {"seed": 3}}
    ), done


def test_it_pretrains_and_finetunes_once(run):
    one, done = run
    folder = one.run()
    name = "nnUNetPlans_zoomlin_tiny"
    assert [" ".join(command) for command in done] == [
        f"nnUNetv2_train 500 3d_fullres all -tr SelmaSSLTrainer_BYOL -p {name} -device cpu",
        f"nnUNetv2_train 510 3d_fullres 0 -tr SelmaFinetuneTrainer_FrozenEncoder -p {name} -device cpu",
    ]
    assert folder.parent.name == f"SelmaFinetuneTrainer_FrozenEncoder__{name}__3d_fullres"
    finetuning = read_settings(
        read_json(one.pipeline.folders.preprocessed / "Dataset510_A" / f"{name}.json")
    ).finetuning
    assert finetuning.pretrained == str(one.pipeline.fold_folder(one.pretraining) / CHECKPOINT)
    assert (finetuning.seed, finetuning.loss) == (3, "dice")
    one.run()
    assert len(done) == 2  # nothing is done twice


@pytest.mark.parametrize("left", ["checkpoint_latest.pth", CHECKPOINT])  # killed before its summary was written
def test_a_killed_training_goes_on(run, left):
    one, done = run
    one.pipeline.fold_folder(one.pretraining).mkdir(parents=True)
    (one.pipeline.fold_folder(one.pretraining) / left).touch()
    one.run()
    assert [command[-1] for command in done] == ["--c", "cpu"]


def test_other_settings_are_not_mixed_with_what_was_trained(run):
    one, done = run
    one.run()
    with pytest.raises(SelmaError, match="is a run with other settings than these; remove it"):
        replace(one, changes={"finetuning": {"seed": 4}}).run()
    with pytest.raises(SelmaError, match="is a run with other settings"):
        replace(one, changes={"pretraining": {"epochs": 4}}).run()
    assert len(done) == 2


def test_from_scratch_nothing_is_pretrained(run):
    one, done = run
    scratch = replace(one, recipe=from_scratch(one.recipe))
    scratch.run()
    assert [command[1] for command in done] == ["510"]
    content = read_json(one.pipeline.folders.preprocessed / "Dataset510_A" / f"{scratch.name}.json")
    assert read_settings(content).finetuning.pretrained == "none"


def test_a_tile_store_goes_before_preprocessed_cases(run):
    one, _ = run
    dataset = one.pipeline.folders.preprocessed / "Dataset500_B"
    assert one.pretraining_plans() == "nnUNetPlans_from510"
    content = read_json(dataset / "nnUNetPlans_from510.json")
    content["configurations"]["3d_fullres"]["data_identifier"] = "store_3d"
    write_json(dataset / "nnUNetPlans_from510_store.json", content)
    assert one.pretraining_plans() == "nnUNetPlans_from510"  # its data are missing
    (dataset / "store_3d").mkdir()
    assert one.pretraining_plans() == "nnUNetPlans_from510_store"


def test_predictions_are_made_by_nnunets_command(run, tmp_path):
    one, done = run
    one.predict(tmp_path / "in", tmp_path / "out", "--disable_tta")
    assert done[-1][:2] == ["nnUNetv2_predict", "-d"]
    assert done[-1][-1] == "--disable_tta"
    assert done[-1][done[-1].index("-tr") + 1] == "SelmaFinetuneTrainer_FrozenEncoder"


def test_plans_that_are_missing_are_named(run):
    one, _ = run
    with pytest.raises(SelmaError, match=r"other\.json does not exist"):
        replace(one, plans_name="other", recipe=from_scratch(one.recipe)).run()
