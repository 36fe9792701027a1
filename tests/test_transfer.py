import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.transfer import carry_over, read_weights
from tests.plans import network, plans


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def is_head(key):
    return ".seg_layers." in key


def test_everything_but_the_heads_is_carried_over():
    source, target = network(plans()), network(plans(), pretraining=False)
    before = state(target)
    report = carry_over(source.state_dict(), target)
    assert report.share == 1.0
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if is_head(key) else source.state_dict()[key]), key


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_each_tensor_is_copied_or_untouched_as_the_report_says(data):
    source, target = network(plans()), network(plans(), pretraining=False)
    weights = source.state_dict()
    encoder = [k for k in weights if k.startswith("encoder.") and "all_modules" not in k]
    for key in data.draw(st.sets(st.sampled_from(encoder), max_size=4)):
        for alias in [k for k in weights if weights[k].data_ptr() == weights[key].data_ptr()]:
            del weights[alias]
    before = state(target)
    report = carry_over(weights, target)
    after = target.state_dict()
    for tensor in report.tensors:
        assert torch.equal(after[tensor.key], weights[tensor.key] if tensor.fate == "copied" else before[tensor.key])
    assert sum(t.parameters for t in report.tensors) == sum(p.numel() for p in target.parameters())


@pytest.mark.parametrize(("source_channels", "target_channels"), [(1, 2), (2, 1)])
def test_another_number_of_input_channels_is_adapted_to_the_same_response(source_channels, target_channels):
    source, target = (
        network(plans(), input_channels=source_channels),
        network(plans(), input_channels=target_channels, pretraining=False),
    )
    report = carry_over(source.state_dict(), target)
    assert {t.fate for t in report.tensors if t.key.startswith("encoder.stages.0.0.convs.0.conv.weight")} == {"adapted"}
    image = torch.randn(1, 1, 8, 8, 8)
    stem = lambda net, n: net.encoder.stages[0][0].convs[0].conv(image.expand(1, n, 8, 8, 8))  # noqa: E731
    torch.testing.assert_close(stem(source, source_channels), stem(target, target_channels))


def test_a_deeper_network_gets_what_fits_and_the_rest_is_reported():
    source, target = network(plans()), network(plans("112³, strides 16, (1,3,3) stem"), pretraining=False)
    with pytest.raises(SelmaError, match="another architecture"):
        carry_over(source.state_dict(), target, "x.pth")


def test_a_refusal_leaves_the_network_unchanged():
    target = network(plans(), pretraining=False)
    before = state(target)
    with pytest.raises(SelmaError, match=r"x\.pth: only 0\.0%"):
        carry_over({"some.other.weight": torch.zeros(3)}, target, "x.pth")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_the_table_names_the_parts():
    table = carry_over(network(plans()).state_dict(), network(plans(), pretraining=False)).table()
    assert "encoder.stages.0" in table
    assert "100.0%" in table


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
    read = read_weights(tmp_path / "c.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[k], weights[k]) for k in weights)


def test_numpy_scalars_in_nnunets_log_are_let_in(tmp_path):
    log = {"lrs": [np.float64(0.1)], "ema": [np.float32(1)], "dice": [[np.float32(0.5)]], "best": np.float64(1)}
    torch.save({"network_weights": {"a": torch.ones(1)}, "logging": log}, tmp_path / "c.pth")
    assert read_weights(tmp_path / "c.pth") == {"a": torch.ones(1)}


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_pickle_that_wants_to_run_code_is_refused(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({"network_weights": {"a": torch.ones(1)}, "x": Malicious()}, tmp_path / "c.pth")
    with pytest.raises(SelmaError, match=r"c\.pth: refused.*run code"):
        read_weights(tmp_path / "c.pth")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": torch.ones(100_000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:1000])
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name, match in (
        ("none.pth", "no such"),
        ("text.pth", "refused|no checkpoint"),
        ("cut.pth", "cut short"),
        ("empty.pth", "no network weights"),
    ):
        with pytest.raises(SelmaError, match=match):
            read_weights(tmp_path / name)
