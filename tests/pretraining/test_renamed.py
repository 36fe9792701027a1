"""Pretexts of users that define methods by their names of earlier versions."""

import sys
from types import ModuleType

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.pretraining.base import Pretext, pretext_named
from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.trainers.pretexts import SelmaSSLTrainer_BYOL


@pytest.fixture
def named(monkeypatch):
    """The name of a subclass of a pretext that defines one more attribute."""

    def make(base, attribute):
        module = ModuleType("my_pretexts")
        module.Mine = type("Mine", (base,), {attribute: True})
        monkeypatch.setitem(sys.modules, "my_pretexts", module)
        return "my_pretexts.Mine"

    return make


@pytest.mark.parametrize(
    ("base", "former", "present"),
    [(base, *pair) for base in (Pretext, MaskedInpainting) for pair in base.renamed.items()],
)
def test_a_former_name_is_refused_and_the_present_one_named(base, former, present, named):
    assert hasattr(base, present)
    with pytest.raises(SelmaError, match=f"defines {former}; this method is now called {present}"):
        pretext_named(named(base, former))


def test_other_pretexts_may_have_methods_of_these_names(named):
    assert pretext_named(named(Pretext, "answer")).__name__ == "Mine"
    assert pretext_named(SelmaSSLTrainer_BYOL.pretext_class).__name__ == "Byol"
