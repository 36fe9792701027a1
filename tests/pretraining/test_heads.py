import pytest
import torch
from torch import nn

from nnunet_selma.pretraining.heads import cosine_to_one, follow, projector, teacher_of


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (50, 0.998), (100, 1.0), (200, 1.0)])
def test_the_momentum_rises_along_a_cosine(step, momentum):
    assert cosine_to_one(0.996, step, 100) == pytest.approx(momentum)


def test_a_teacher_follows_and_is_not_trained():
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    teacher = teacher_of(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    student[1].running_mean.fill_(4.0)
    before = [p.clone() for p in teacher.parameters()]
    follow(teacher, student, 0.75)
    for old, new, own in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * own)
        assert not new.requires_grad
    assert torch.equal(teacher[1].running_mean, torch.ones(3))
    follow(teacher, student, 1.0)
    torch.testing.assert_close(teacher[0].weight, 0.75 * before[0] + 0.25 * student[0].weight)


def test_a_projector_needs_no_batch():
    head = projector(6, 8, 4)
    alone, together = torch.randn(1, 6), torch.randn(3, 6)
    together[0] = alone[0]
    torch.testing.assert_close(head(alone)[0], head(together)[0])
