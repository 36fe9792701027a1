import pytest

from nnunet_selma import structures
from nnunet_selma.errors import SelmaError

# the folder names of the public downloads, and the prefixes of the 2026 evaluator
FOLDERS = {
    "VessAP_vessel": "blood_vessel",
    "vessel": "blood_vessel",
    "cFos-Active_Neurons": "cfos_neuron",
    "c-Fos_brain_cells": "cfos_neuron",
    "cFos": "cfos_neuron",
    "shannel_cells": "cell_nuclei",
    "cell_nucleus": "cell_nuclei",
    "AD_plaques": "AD_plaques",
    "Ab_plaques": "AD_plaques",
    "microglia": "microglia",
    "Sox9_Chondrogenic_cells": "chondrogenic_cell",
}
CONTIGUOUS_2026 = {"axonalmarker", "blood_vessel", "gutnerve", "lymphatic_vessel", "peripheral_nerve"}
ISOLATED_2026 = {"AD_plaques", "cell_nuclei", "cfos_neuron", "microglia", "protein"}


@pytest.mark.parametrize(("folder", "prefix"), FOLDERS.items())
def test_folders_of_the_downloads_are_known(folder, prefix):
    assert structures.named(folder).prefix == prefix


def test_evaluator_prefixes_of_2026_have_their_kind():
    by_prefix = {s.prefix: s for s in structures.STRUCTURES}
    assert {p for p in CONTIGUOUS_2026 if by_prefix[p].kind_2026 == "contiguous"} == CONTIGUOUS_2026
    assert {p for p in ISOLATED_2026 if by_prefix[p].kind_2026 == "isolated"} == ISOLATED_2026
    assert all(by_prefix[p].density for p in CONTIGUOUS_2026 | ISOLATED_2026)


def test_kinds_of_2024():
    kinds = {
        p: structures.named(p).kind_2024
        for p in ("cfos_neuron", "cell_nuclei", "AD_plaques", "blood_vessel", "microglia")
    }
    assert kinds == {
        "cfos_neuron": "spot",
        "cell_nuclei": "spot",
        "AD_plaques": "spot",
        "blood_vessel": "tree",
        "microglia": "tree",
    }


def test_names_and_aliases_are_unambiguous_and_sourced():
    names = [n for s in structures.STRUCTURES for n in dict.fromkeys(map(structures._plain, s.names))]
    assert len(names) == len(set(names))
    assert all(s.source for s in structures.STRUCTURES)


def test_spacing_of_the_paper():
    assert structures.named("cell_nuclei").spacing_um_zyx == (5.0, 0.54, 0.54)
    assert structures.named("blood_vessel").spacing_um_zyx == (3.0, 1.625, 1.625)


def test_structure_of_a_case():
    assert structures.of_case("blood_vessel_013_wga").prefix == "blood_vessel"
    assert structures.of_case("cfos_neuron_004").prefix == "cfos_neuron"
    assert structures.of_case("blood_vesselish_1") is None
    assert structures.of_case("cFos_12").prefix == "cfos_neuron"
    assert structures.of_case("VessAP_vessel_patchvolume_003").prefix == "blood_vessel"
    assert structures.of_case("patch_cfos_001").prefix == "cfos_neuron"
    assert structures.of_case("patchvolume_003") is None


def test_unknown_structure_lists_the_known():
    with pytest.raises(SelmaError, match=r"unknown structure 'kidney'.*cfos_neuron"):
        structures.named("kidney")


def test_a_new_structure_is_named_by_its_key():
    fibres = structures.chosen_structure("TH", "tree")
    assert (fibres.kind_2024, fibres.kind_2026, fibres.spacing_um_zyx) == ("tree", "contiguous", None)
    assert structures.named(fibres.key) == fibres
    assert structures.chosen_structure("cFos").key == "cfos_neuron"
    assert structures.chosen_structure("TH").kind_2024 == "spot"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("cFos", "tree", "is of kind spot"), ("a b", "spot", "use letters"), ("", None, "use letters")],
)
def test_structures_that_cannot_be_chosen(name, kind, message):
    with pytest.raises(SelmaError, match=message):
        structures.chosen_structure(name, kind)
