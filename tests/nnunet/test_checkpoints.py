import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nnunet_selma.cli import main
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.checkpoints import (
    ANCESTOR,
    RECORD,
    TRAINED,
    AdaptationRecord,
    Checkpoint,
    adaptation_record,
    distinct,
    export_weights,
    plain,
    read_checkpoint,
)
from tests.plans import network, plans


def equal(read, expected):
    return read.keys() == expected.keys() and all(torch.equal(read[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"network_weights": {"module." + k: v for k, v in s.items()}},
        lambda s: {"model": {"_orig_mod." + k: v for k, v in s.items()}},
    ],
)
def test_checkpoints_of_others_are_read(wrap, tmp_path):
    weights = network(plans()).state_dict()
    torch.save(wrap(weights), tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert equal(read.weights, weights)
    assert (read.record, read.trained) == (None, ())


def test_scalars_that_numpy_1_wrote_are_let_in(tmp_path):
    torch.save(
        {"network_weights": {"a": torch.ones(1)}, "best": np.float64(1)}, tmp_path / "new.pth", pickle_protocol=2
    )
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert any(b"numpy._core.multiarray" in new.read(name) for name in new.namelist())
    assert read_checkpoint(tmp_path / "old.pth").weights == {"a": torch.ones(1)}


@pytest.mark.parametrize(
    "others", [("teacher", "student"), ("ema_model", "model"), ("teacher", "model"), ("net", "student")]
)
def test_a_moving_average_goes_before_the_network_it_follows(others, tmp_path):
    first, second = others
    torch.save(
        {second: {"a": torch.zeros(1)}, "best_metric": torch.ones(1), first: {"a": torch.ones(1)}}, tmp_path / "c.pth"
    )
    read = read_checkpoint(tmp_path / "c.pth")
    assert (read.place, read.weights) == (first, {"a": torch.ones(1)})


def test_a_model_of_version_1_is_named_as_such(tmp_path):
    torch.save({"state_dict": {"conv_blocks_context.0.blocks.0.conv.weight": torch.ones(1)}}, tmp_path / "m.model")
    with pytest.raises(SelmaError, match=r"m\.model: is a model of nnU-Net's version 1"):
        read_checkpoint(tmp_path / "m.model")


def test_numpy_scalars_in_nnunets_log_are_let_in(tmp_path):
    log = {"lrs": [np.float64(0.1)], "ema": [np.float32(1)], "dice": [[np.float32(0.5)]], "best": np.float64(1)}
    torch.save({"network_weights": {"a": torch.ones(1)}, "logging": log}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").weights == {"a": torch.ones(1)}


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_pickle_that_wants_to_run_code_is_refused(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({"network_weights": {"a": torch.ones(1)}, "x": Malicious()}, tmp_path / "c.pth")
    with pytest.raises(SelmaError, match=r"c\.pth: refused.*run code"):
        read_checkpoint(tmp_path / "c.pth")
    with pytest.raises(SelmaError, match=r"c\.pth: refused.*run code"):
        export_weights(tmp_path / "c.pth", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("none.pth", "there is no such"),
        ("text.pth", "refused|no checkpoint"),
        ("cut.pth", "cut short"),
        ("empty.pth", "no network weights"),
        ("none.safetensors", "there is no such"),
        ("text.safetensors", "no safetensors file or is cut short"),
        ("cut.safetensors", "no safetensors file or is cut short"),
        ("empty.safetensors", "no network weights"),
        ("badly.safetensors", "no valid JSON.*export it again"),
    ],
)
def test_what_is_no_checkpoint(name, match, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, this is text")
    torch.save({"a": torch.ones(100_000)}, tmp_path / "cut.pth")
    save_file({"a": torch.ones(100_000)}, tmp_path / "cut.safetensors")
    for suffix in ("pth", "safetensors"):
        whole = (tmp_path / f"cut.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:1000])
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    save_file({}, tmp_path / "empty.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "badly.safetensors", {TRAINED: "[encoder"})
    with pytest.raises(SelmaError, match=match) as caught:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("residual", [False, True])
def test_only_what_was_trained_is_read(residual, tmp_path):
    weights = network(plans(residual=residual)).state_dict()
    torch.save({"network_weights": weights, TRAINED: ["encoder"]}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert read.trained == ("encoder",)
    # the decoder's list of the encoder is the encoder
    encoder = {k: v for k, v in weights.items() if k.startswith(("encoder.", "decoder.encoder."))}
    assert equal(read.weights, encoder)
    torch.save({"network_weights": weights, TRAINED: ["decoder"]}, tmp_path / "c.pth")
    assert equal(read_checkpoint(tmp_path / "c.pth").weights, {k: v for k, v in weights.items() if k not in encoder})


def test_a_name_that_is_only_the_beginning_of_another_is_not_the_module(tmp_path):
    torch.save(
        {"network_weights": {"encoder.a": torch.ones(1), "encoder2.a": torch.ones(1)}, TRAINED: ["encoder"]},
        tmp_path / "c.pth",
    )
    assert read_checkpoint(tmp_path / "c.pth").weights.keys() == {"encoder.a"}


def test_a_trained_part_that_is_not_there(tmp_path):
    torch.save({"network_weights": {"a": torch.ones(1)}, TRAINED: ["encoder"]}, tmp_path / "c.pth")
    with pytest.raises(SelmaError, match=r"c\.pth: says that encoder was trained"):
        read_checkpoint(tmp_path / "c.pth")


# the fields of nnssl's AdaptationPlan, Plan and ConfigurationPlan; a field too many is a TypeError there
OF_RECORD = {
    "architecture_plans",
    "pretrain_plan",
    "pretrain_num_input_channels",
    "recommended_downstream_patchsize",
    "key_to_encoder",
    "key_to_stem",
    "keys_to_in_proj",
    "key_to_lpe",
}
OF_PLAN = {
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
}
OF_CONFIGURATION = {
    "data_identifier",
    "preprocessor_name",
    "spacing_style",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_mask",
    "resampling_fn_mask_kwargs",
    "spacing",
    "patch_size",
}


@pytest.mark.parametrize("residual", [False, True])
def test_the_record_is_what_nnssl_and_nnunet_ask_for(residual, tmp_path):
    content = plans(residual=residual)
    net = network(content)
    record = adaptation_record(net, content, "3d_fullres", 1)
    assert record.keys() == OF_RECORD
    assert record["architecture_plans"].keys() == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert record["architecture_plans"]["arch_class_name"].endswith(("PlainConvUNet", "ResidualEncoderUNet"))
    assert record["pretrain_plan"].keys() == OF_PLAN
    (configuration,) = record["pretrain_plan"]["configurations"].values()
    assert configuration.keys() == OF_CONFIGURATION
    assert configuration["patch_size"] == record["recommended_downstream_patchsize"] == [16, 16, 16]
    assert AdaptationRecord(record).patch_size == (16, 16, 16)
    assert json.loads(json.dumps(record)) == record

    # as nnU-Net's development version loads it: strictly, encoder and stem each by its key
    log = {"train_losses": [np.float64(0.5)], "lrs": [np.float32(0.1)]}
    path = tmp_path / "checkpoint_final.pth"
    torch.save(
        plain({"network_weights": {}, "logging": log}) | {"network_weights": net.state_dict(), RECORD: record}, path
    )
    loaded = torch.load(path, weights_only=True)
    told, target = loaded[RECORD], network(content, pretraining=False)
    for key, place in ((told["key_to_encoder"], target.key_to_encoder), (told["key_to_stem"], target.key_to_stem)):
        part = {k[len(key) + 1 :]: v for k, v in loaded["network_weights"].items() if k.startswith(f"{key}.")}
        assert part
        target.get_submodule(place).load_state_dict(part, strict=True)
    for key in told["keys_to_in_proj"]:
        assert f"{key}.weight" in loaded["network_weights"]


def test_a_configuration_that_inherits():
    content = plans()
    whole = adaptation_record(network(content), content, "3d_fullres", 1)
    content["configurations"]["cascade"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    record = adaptation_record(network(content), content, "cascade", 2)
    assert record["pretrain_num_input_channels"] == 2
    assert record["pretrain_plan"]["configurations"]["cascade"]["patch_size"] == [8, 8, 8]
    assert record["architecture_plans"] == whole["architecture_plans"]


def test_a_network_that_does_not_say_where_its_encoder_is_has_no_record():
    assert adaptation_record(torch.nn.Conv3d(1, 1, 1), plans(), "3d_fullres", 1) is None


def test_records_of_others_are_read_leniently(tmp_path):
    # nnssl turns numpy into tensors, and has tuples; a pretext that crops writes its own patch
    record = {
        "key_to_encoder": "encoder.eva",
        "keys_to_in_proj": ("projection.proj",),
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": torch.tensor([160, 160, 160])}}},
    }
    torch.save({"network_weights": {"a": torch.ones(1)}, RECORD: record}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth").record
    assert read.content["key_to_encoder"] == "encoder.eva"
    assert read.patch_size == (160, 160, 160)
    assert json.dumps(read.content)
    assert AdaptationRecord({**read.content, "pretrain_patch_size": [64, 64, 64]}).patch_size == (64, 64, 64)
    assert AdaptationRecord({}).patch_size is None


def test_weights_are_named_as_in_the_network():
    net = network(plans(residual=True))
    theirs = {
        "net.encoder.stages.0.w": torch.ones(1),
        "net.encoder.stem.w": torch.ones(2),
        "net.decoder.w": torch.ones(3),
        "net.encoder.stagesque": torch.ones(4),
    }
    record = AdaptationRecord({"key_to_encoder": "net.encoder.stages", "key_to_stem": "net.encoder.stem"})
    named = Checkpoint(theirs, record).named_as_in(net)
    assert named["encoder.stages.0.w"] is theirs["net.encoder.stages.0.w"]
    assert named["encoder.stem.w"] is theirs["net.encoder.stem.w"]
    assert set(named) - set(theirs) == {"encoder.stages.0.w", "encoder.stem.w"}
    assert Checkpoint(theirs).named_as_in(net) == theirs
    net.key_to_lpe = "encoder.stages.positions"
    record = AdaptationRecord({"key_to_encoder": "a", "key_to_stem": "a.b", "key_to_lpe": "a.b.c"})
    named = Checkpoint({"a.x": torch.ones(1), "a.b.x": torch.ones(2), "a.b.c": torch.ones(3)}, record).named_as_in(net)
    assert {len(named[key]): key for key in named if key.startswith("encoder.")} == {
        1: "encoder.stages.x",
        2: "encoder.stem.x",
        3: "encoder.stages.positions",
    }


@pytest.mark.parametrize("trained", [[], ["encoder"]])
def test_safetensors_give_back_what_was_exported(trained, tmp_path):
    content = plans(residual=True)
    net = network(content)
    record = adaptation_record(net, content, "3d_fullres", 1)
    entries = {RECORD: record, TRAINED: trained, ANCESTOR: {"weights": "random"}}
    torch.save({"network_weights": net.state_dict(), **entries}, tmp_path / "c.pth")
    tensors, parameters = export_weights(tmp_path / "c.pth", tmp_path / "out.safetensors")
    before, after = (read_checkpoint(tmp_path / name) for name in ("c.pth", "out.safetensors"))
    assert equal(after.weights, before.weights)
    assert (after.record, after.trained) == (before.record, before.trained)
    assert after.origin == before.origin == {"ancestor": {"weights": "random"}}
    # aliases are stored once and are one tensor again
    assert len(distinct(after.weights)) == len(distinct(before.weights)) == tensors
    part = net.encoder if trained else net
    assert parameters == sum(p.numel() for p in part.parameters())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert len(list(file.keys())) == tensors
        assert file.metadata()["selma_origin"] == "c.pth"
    # once more, from safetensors to safetensors
    export_weights(tmp_path / "out.safetensors", tmp_path / "again.safetensors")
    assert equal(read_checkpoint(tmp_path / "again.safetensors").weights, before.weights)


def test_views_of_one_memory_and_empty_tensors_are_exported(tmp_path):
    memory = torch.arange(6.0)
    state = {
        "whole": memory,
        "part": memory[:3],
        "turned": memory.view(2, 3).T,
        "none": torch.empty(0),
        "void": torch.empty(0),
    }
    torch.save(state, tmp_path / "c.pth")
    assert export_weights(tmp_path / "c.pth", tmp_path / "out.safetensors") == (5, 15)
    assert equal(read_checkpoint(tmp_path / "out.safetensors").weights, state)


def test_export_on_the_command_line(tmp_path, capsys):
    net = network(plans())
    torch.save({"network_weights": net.state_dict()}, tmp_path / "c.pth")
    command = ["export-weights", str(tmp_path / "c.pth"), "-o", str(tmp_path / "out.safetensors")]
    assert main(command) == 0
    total = sum(p.numel() for p in net.parameters())
    assert f"{len(list(net.parameters()))} tensors, {total:,} parameters" in capsys.readouterr().out
    written = (tmp_path / "out.safetensors").read_bytes()
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.safetensors").read_bytes() == written
    assert main([*command, "--overwrite"]) == 0
    for output, said in (("out.pth", "must end in .safetensors"), ("no/out.safetensors", "could not be written")):
        assert main([*command[:3], str(tmp_path / output)]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "out.safetensors"]
