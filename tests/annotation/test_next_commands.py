"""The commands that lead on, from round to round."""

import shutil

import numpy as np
import pytest

from nnunet_selma.annotation.conversion import convert_cubes
from nnunet_selma.annotation.cube_settings import CubeSettings
from nnunet_selma.annotation.next_commands import next_commands
from nnunet_selma.annotation.rounds import standing
from nnunet_selma.annotation.rounds_text import as_text
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.datasets import DATASET, convert
from tests.annotation.folders import SHAPE, blobs, keep_unsaved, paint, write_cubes
from tests.annotation.loops import MODEL, Clock, annotate, at, commands, trained


def test_the_printed_commands_lead_through_two_rounds(cubes, folders, rng):
    with pytest.raises(SelmaError, match="give the folder of cubes"):
        standing(510, folders)
    assert commands(cubes, folders) == [f"nnunet-selma view {cubes}/cube_0001"]
    annotate(cubes, rng, 1, 2)
    assert commands(cubes, folders) == [f"nnunet-selma view {cubes}/cube_0003"]
    annotate(cubes, rng, 3)
    assert commands(cubes, folders) == [f"nnunet-selma convert annotated {cubes} -d 510"]
    convert(cubes, folders)
    clock = Clock(folders)
    train = [f"nnUNetv2_train 510 3d_fullres {fold} -tr nnUNetTrainer -p nnUNetPlans" for fold in range(3)]
    again = "nnunet-selma round -d 510"
    plan = "nnUNetv2_plan_and_preprocess -d 510 -c 3d_fullres --verify_dataset_integrity"
    assert commands(None, folders) == [plan, *train, again]
    clock.preprocess()
    assert commands(None, folders) == [*train, again]
    clock.train(0)
    clock.train(1, finished=False)
    assert commands(None, folders) == [f"{train[1]} --c", train[2], again]
    clock.train(1)
    clock.train(2)
    results = folders.results / DATASET / MODEL
    brains = " ".join(f"/brains/{name}.ome.zarr" for name in "abc")
    assert commands(None, folders) == [f"nnunet-selma propose {brains} -n 3 -o {cubes} --level 1 --model {results}"]

    write_cubes(cubes, rng, ["a"], round_number=2)
    annotate(cubes, rng, 4)
    assert commands(None, folders) == [f"nnunet-selma convert annotated {cubes} -d 510"]
    convert(cubes, folders)
    clock.convert_again()
    preprocess = "nnUNetv2_preprocess -d 510 -plans_name nnUNetPlans -c 3d_fullres"
    assert commands(None, folders) == [preprocess, *train, again]
    state = standing(510, folders)
    assert state.stale == ["cube_0004"]
    assert [training.version for training in state.trainings] == [1, 1, 1]
    assert "round 2: 1 cube handed over (a 1), 1 changed since, 1 in the dataset" in as_text(state)


def test_the_first_training_has_the_plans_that_were_written_last(cubes, folders, rng):
    annotate(cubes, rng, 1, 2, 3)
    convert(cubes, folders)
    clock = Clock(folders)
    clock.preprocess()

    def write_plans(name, **content):
        path = folders.preprocessed / DATASET / f"{name}.json"
        write_json(path, content)
        at(path, clock.next())

    write_plans("nnUNetResEncUNetMPlans", configurations={"2d": {}, "3d_fullres": {}})
    train = "nnUNetv2_train 510 3d_fullres 0 -tr"
    assert commands(None, folders)[0] == f"{train} nnUNetTrainer -p nnUNetResEncUNetMPlans"
    write_plans("nnUNetSmallPlans", configurations={"3d_fullres": {}}, selma={"finetuning": {"epochs": 3}})
    assert commands(None, folders)[0] == f"{train} SelmaFinetuneTrainer -p nnUNetSmallPlans"
    write_plans("nnUNetPlans_attention_unet", configurations={"2d": {}})
    assert commands(None, folders)[0] == "nnUNetv2_train 510 2d 0 -tr nnUNetTrainer -p nnUNetPlans_attention_unet"
    clock.train(0)
    assert commands(None, folders)[0] == f"{train.replace(' 0 ', ' 1 ')} nnUNetTrainer -p nnUNetPlans"


def test_cubes_that_are_left_out_do_not_wait(cubes, folders, rng):
    annotate(cubes, rng, 1, 2)
    convert(cubes, folders, {"without_unchanged": True})
    state = standing(510, folders)
    assert "left out: cube_0003" in as_text(state)
    assert next_commands(state)[0].startswith("nnUNetv2_plan_and_preprocess -d 510")
    paint(cubes, "cube_0003", np.full(SHAPE, 255, np.uint8))
    assert commands(None, folders) == [f"nnunet-selma convert annotated {cubes} -d 510"]
    convert(cubes, folders)
    assert commands(None, folders)[0].startswith("nnUNetv2_plan_and_preprocess -d 510")


def test_the_next_proposal_repeats_the_last_one(cubes, folders, rng):
    trained(cubes, folders, rng)
    record = read_json(cubes / "selma_cubes.json")
    paths = {name: [f"/brains/{name}.n5", "fingerprint"] for name in ("a", "e f")}  # e f has no cube
    settings = {**record["rounds"][-1]["settings"], "count": 7, "seed": 4, "pool": 90}
    write_json(cubes / "selma_cubes.json", {**record, "rounds": [{"round": 1, "settings": settings, "brains": paths}]})
    (line,) = commands(None, folders)
    expected = f"propose /brains/a.n5 '/brains/e f.n5' -n 7 -o {cubes} --seed 4 --pool 90 --level 1 --model "
    assert line.startswith(f"nnunet-selma {expected}")


def test_commands_name_a_dataset_of_another_name(cubes, folders, rng):
    annotate(cubes, rng, 1, 2, 3)
    convert_cubes(cubes, AnnotatedSettings(name="Vessels"), CubeSettings(), folders)
    annotate(cubes, rng, 2)
    assert commands(None, folders) == [f"nnunet-selma convert annotated {cubes} -d 510 --name Vessels"]


def test_what_was_painted_and_not_saved_comes_first(cubes, folders, rng):
    view = [f"nnunet-selma view {cubes}/cube_0002"]
    annotate(cubes, rng, 1, 3)
    keep_unsaved(cubes, "cube_0002", blobs(rng))
    assert "painted and not saved: cube_0002 (unsaved_0001.nii.gz)" in as_text(standing(510, folders, cubes))
    assert commands(cubes, folders) == view
    annotate(cubes, rng, 2)
    assert commands(cubes, folders) == view
    convert(cubes, folders, {"as_is": ("cube_0002",)})
    lines = next_commands(standing(510, folders))
    assert lines[0].startswith("# cube_0002: take what was painted and not saved")
    assert lines[0].endswith(view[0])
    assert lines[1].startswith("nnUNetv2_plan_and_preprocess -d 510")
    convert(cubes, folders, {"without": ("cube_0002",)})
    assert next_commands(standing(510, folders))[0].startswith("nnUNetv2_plan_and_preprocess -d 510")
    keep_unsaved(cubes, "cube_0002", blobs(rng), 2)
    assert commands(None, folders) == view


def test_suggestions_of_a_model_may_be_right(cubes, folders, rng):
    converting = f"nnunet-selma convert annotated {cubes} -d 510 --as-is CUBE …"
    annotate(cubes, rng, 1, 2)
    assert not any(line.endswith(converting) for line in next_commands(standing(510, folders, cubes)))
    write_cubes(cubes, rng, ["d"], round_number=2, suggestion=blobs(rng))
    line = next_commands(standing(510, folders, cubes))[-1]
    assert line == f"# or, to take suggestions of the model that are right as they are: {converting}"


def test_a_label_that_went_back_to_what_was_handed_over_is_converted_first(tmp_path, cubes, folders, rng):
    shutil.copy(cubes / "cube_0002/label.nii.gz", tmp_path)
    annotate(cubes, rng, 1, 2, 3)
    convert(cubes, folders)
    shutil.copy(tmp_path / "label.nii.gz", cubes / "cube_0002")
    assert commands(None, folders) == [f"nnunet-selma convert annotated {cubes} -d 510"]
