import pytest
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.naming import named_as_in
from nnunet_selma.finetuning.transfer import carry_over
from nnunet_selma.nnunet.checkpoints import read_checkpoint
from tests.plans import network, plans

WRAPPED = {
    "module.": "behind 'module.'",
    "model.": "behind 'model.'",
    "net.module.backbone.": "behind 'net.module.backbone.'",
    "": "",
}


def pair():
    """Two networks of the same plans with other weights, in the mode of evaluation."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        yield network(plans(), pretraining=False).eval()


def same(here, there):
    image = torch.randn(1, 1, 16, 16, 16)
    return all(torch.equal(a, b) for a, b in zip(here(image), there(image), strict=True))


@pytest.mark.parametrize("entry", ["state_dict", "network_weights", "model", "net", "teacher", "student"])
@pytest.mark.parametrize("beginning", WRAPPED)
def test_a_network_in_any_wrapping_gives_the_same_outputs(entry, beginning, tmp_path):
    theirs, ours = pair()
    weights = {beginning + key: value for key, value in theirs.state_dict().items()}
    torch.save({entry: weights, "epoch": 3}, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint.place == entry
    carry_over(checkpoint, ours, keep_head=True)
    assert same(ours, theirs)


@pytest.mark.parametrize("beginning", WRAPPED)
def test_how_others_name_the_weights_is_said(beginning):
    theirs, ours = pair()
    named = named_as_in({beginning + key: value for key, value in theirs.state_dict().items()}, ours)
    assert named.how == WRAPPED[beginning]
    assert named.weights.keys() == ours.state_dict().keys()


def test_an_encoder_alone_is_found():
    theirs, ours = pair()
    weights = {f"backbone.{key}": value for key, value in theirs.encoder.state_dict().items()}
    report = carry_over({**weights, "projection.weight": torch.ones(3)}, ours)
    assert report.named == "as those of its encoder alone behind 'backbone.'"
    image = torch.randn(1, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(ours.encoder(image), theirs.encoder(image), strict=True))


def test_of_a_student_and_its_teacher_the_teacher_is_taken():
    theirs, ours = pair()
    teacher = {f"teacher.{key}": value for key, value in theirs.state_dict().items()}
    student = {f"student.{key}": torch.zeros_like(value) for key, value in theirs.state_dict().items()}
    carry_over({**student, **teacher}, ours, keep_head=True)
    assert same(ours, theirs)


def test_beginnings_under_which_as_much_is_found_are_all_said():
    theirs, ours = pair()
    weights = {f"{name}.{key}": value for name in ("online", "target") for key, value in theirs.state_dict().items()}
    assert named_as_in(weights, ours).how == "behind 'online.' (as many lie behind 'target.')"


def test_other_networks_stay_as_they_are_and_are_refused_with_both_names():
    _, ours = pair()
    foreign = {"conv_1.weight": torch.zeros(3, 1, 3, 3, 3), "conv_2.weight": torch.zeros(3, 3, 3, 3, 3)}
    assert named_as_in(foreign, ours).weights == foreign
    with pytest.raises(SelmaError, match=r"such as encoder\.stages.*, there are conv_1\.weight, conv_2\.weight"):
        carry_over(foreign, ours, "x.pth")
