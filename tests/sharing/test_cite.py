import re
from importlib import import_module

import pytest

from nnunet_selma import __version__, cli
from nnunet_selma.networks.designs import NETWORKS
from nnunet_selma.sharing import works
from nnunet_selma.sharing.cite import citations, open_points
from nnunet_selma.sharing.works import Work
from nnunet_selma.trainers import TRAINERS, pretexts
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from tests.conftest import REPOSITORY
from tests.plans import plans
from tests.prediction.models import write_model
from tests.sharing.facts import PRETRAINED, model

ALL = {work.key: work for work in vars(works).values() if isinstance(work, Work)}
PRETEXT_CLASSES = [
    getattr(pretexts, name, SelmaSSLTrainer).pretext_class for name in TRAINERS if name.startswith("SelmaSSL")
]
DATA = {"chen2025selma3d", "kaltenecker2024delivr", "todorov2020vessap", "zhao2020shanel", "bhatia2022discoms"}
PUBLISHED = {"2111.14791": "10.1109/CVPR52688.2022.02007"}
"""Papers that a docstring names by their number on arXiv, and that are cited as published."""


def cited(facts):
    return {citation.key: citation for citation in citations(facts)}


def test_every_model_cites_nnunet_first_and_this_package_last():
    keys = [citation.key for citation in citations(model(trainer="nnUNetTrainer"))]
    assert keys == ["isensee2021nnunet", "nnunet_selma"]


@pytest.mark.parametrize("name", PRETEXT_CLASSES)
def test_a_pretext_cites_what_its_docstring_names(name):
    module, _, kind = name.rpartition(".")
    named = re.findall(r"arXiv (\d{4}\.\d{5})", getattr(import_module(module), kind).__doc__)
    facts = model(ancestor={**PRETRAINED, "pretext": kind}, manifest={"layout": "names"})
    dois = {citation.doi for citation in citations(facts) if kind in citation.reason}
    assert dois
    assert {PUBLISHED.get(number, f"10.48550/arXiv.{number}") for number in named} <= dois


def test_the_pretext_of_an_ancestors_ancestor_is_cited():
    ancestor = {**PRETRAINED, "pretext": None, "trainer": "SelmaFinetuneTrainer", "ancestor": PRETRAINED}
    facts = model(ancestor=ancestor, cases=["cfos_neuron_1"])
    assert "grill2020byol" in cited(facts)
    assert not open_points(facts)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_cite_their_papers_and_monai_where_they_need_it(name):
    design = NETWORKS[name]
    keys = cited(model(network=f"nnunet_selma.networks.{design.class_name}")).keys()
    assert ("cardoso2022monai" in keys) == design.needs_monai
    assert len(keys - {"cardoso2022monai", "isensee2021nnunet", "nnunet_selma"}) >= 1


@pytest.mark.parametrize("residual", [True, False])
def test_residual_encoders_cite_their_paper(residual):
    assert ("isensee2024revisited" in cited(model(content=plans(residual=residual)))) == residual


@pytest.mark.parametrize(
    ("layout", "cases", "keys", "certain"),
    [
        ("challenge_zip", ["blood_vessel_3"], DATA, True),
        ("names and bioimage_archive", [], DATA, True),
        ("delivr", ["microglia_3"], {"kaltenecker2024delivr"}, True),
        ("names", ["cfos_neuron_1"], set(), True),
        (None, ["cfos_neuron_1"], DATA, False),
        (None, ["microglia_1"], {"kaltenecker2024delivr"}, False),
        (None, ["TH_1"], set(), False),
    ],
)
def test_data_are_cited_by_where_they_come_from(layout, cases, keys, certain):
    manifest = None if layout is None else {"layout": layout, "cases": {}}
    of_data = {key: citation for key, citation in cited(model(manifest=manifest, cases=cases)).items() if key in DATA}
    assert of_data.keys() == keys
    assert all(("if the" not in citation.reason) == certain for citation in of_data.values())


def test_a_data_set_that_is_called_selma3d_may_be_it():
    facts = model(dataset="Dataset510_SELMA3D", cases=["TH_1"])
    assert cited(facts).keys() >= DATA
    assert all(cited(facts)[key].reason.startswith("if the annotated") for key in DATA)


def test_each_data_paper_is_cited_for_its_structure():
    reasons = {key: citation.reason for key, citation in cited(model(manifest={"layout": "challenge_zip"})).items()}
    assert "blood vessel" in reasons["todorov2020vessap"]
    assert "c-Fos" in reasons["kaltenecker2024delivr"]
    assert "nucleus" in reasons["zhao2020shanel"]
    assert "plaque" in reasons["bhatia2022discoms"]


def test_pretraining_on_unknown_brains_may_owe_selma3d_a_citation():
    facts = model(ancestor=PRETRAINED, manifest={"layout": "names"}, cases=["TH_1"])
    assert cited(facts).keys() >= DATA
    assert "if the unlabelled" in cited(facts)["chen2025selma3d"].reason


@pytest.mark.parametrize(
    ("ancestor", "cases", "words"),
    [
        ({"weights": "random"}, ["cfos_neuron_1"], []),
        ({"weights": "given"}, ["cfos_neuron_1"], ["nnUNetv2_train was given"]),
        ({"weights": "unknown"}, ["cfos_neuron_1"], ["not recorded"]),
        (None, ["cfos_neuron_1"], ["not recorded"]),
        ({**PRETRAINED, "pretext": None, "trainer": "BaseMAETrainer"}, ["cfos_neuron_1"], ["a.pth"]),
        ({**PRETRAINED, "pretext": "Denoising"}, ["cfos_neuron_1"], ["Denoising"]),
        ({"weights": "random"}, ["TH_1"], ["training data"]),
        ({"weights": "random"}, [], ["training data"]),
    ],
)
def test_what_cannot_be_named_is_said(ancestor, cases, words):
    points = open_points(model(ancestor=ancestor, cases=cases))
    assert len(points) == len(words)
    assert all(word in point for word, point in zip(words, points, strict=True))


@pytest.mark.parametrize(
    ("layout", "words"),
    [("challenge_zip", []), ("delivr", []), ("pairs", ["(pairs)"]), ("pairs and delivr", ["(pairs)"])],
)
def test_data_of_another_layout_are_to_be_cited(layout, words):
    manifest = {"layout": layout, "cases": {"cfos_neuron_1": {"structure": "cfos_neuron"}}}
    points = open_points(model(ancestor={"weights": "random"}, manifest=manifest, cases=["cfos_neuron_1"]))
    assert len(points) == len(words)
    assert all(word in point for word, point in zip(words, points, strict=True))


@pytest.mark.parametrize(
    ("origin", "points"), [(None, 1), ({"weights": "random"}, 0), ({"weights": "pretrained", "path": "b.pth"}, 1)]
)
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SelmaFinetuneTrainer"])
def test_an_ancestor_without_pretext_and_origin_is_said(trainer, origin, points):
    ancestor = {**PRETRAINED, "pretext": None, "trainer": trainer, "ancestor": origin}
    assert len(open_points(model(ancestor=ancestor, cases=["cfos_neuron_1"]))) == points


@pytest.mark.parametrize("dataset", ["Dataset500_SELMA3D", "Dataset007_Mine"])
@pytest.mark.parametrize("cases", [["cfos_neuron_1"], ["microglia_2"], []])
def test_a_pretraining_has_no_annotated_data(dataset, cases):
    facts = model(kind="pretraining", dataset=dataset, cases=cases, trainer="SelmaSSLTrainer")
    reasons = [citation.reason for key, citation in cited(facts).items() if key in DATA]
    assert len(reasons) == len(DATA)
    assert all(reason.startswith("if the unlabelled") and "annotated data" not in reason for reason in reasons)


@pytest.mark.parametrize("work", ALL.values(), ids=ALL)
def test_references_are_whole(work):
    lines = work.bibtex.splitlines()
    fields = dict(re.fullmatch(r"  (\w+) = \{(.+)\},", line).groups() for line in lines[1:-1])
    assert lines[0] == f"@{'article' if work.journal else 'misc'}{{{work.key},"
    assert work.bibtex.count("{") == work.bibtex.count("}")
    assert len(fields["author"].split(" and ")) == len(work.authors) + work.others
    assert (fields.get("doi", ""), fields["title"]) == (work.doi, f"{{{work.title}}}")
    assert work.sentence.startswith(work.authors[0].removesuffix("."))
    assert ".." not in work.sentence
    if work is not works.THIS_PACKAGE:
        assert re.fullmatch(r"10\.\d{4,5}/\S+", work.doi)
        assert fields["year"] == str(work.year)
        assert work.sentence.endswith(f" ({work.year}). https://doi.org/{work.doi}")


def test_no_two_works_share_a_key_or_a_doi():
    assert len(ALL) == len({work.doi for work in ALL.values()})
    assert len(ALL) == sum(isinstance(work, Work) for work in vars(works).values())


def test_the_readme_names_the_same_papers():
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for work in (works.NNUNET, works.DELIVR):
        assert f"https://doi.org/{work.doi}" in page
    assert "https://arxiv.org/abs/2501.03880" in page


def test_citation_cff_agrees_with_the_package():
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert content["version"] == __version__
    assert f'license = "{content["license"]}"' in project
    assert [author["name"] for author in content["authors"]] == list(works.THIS_PACKAGE.authors)
    for reference, work in zip(content["references"], (works.NNUNET, works.SELMA3D), strict=True):
        assert (reference["doi"], reference["title"], reference["year"]) == (work.doi, work.title, work.year)


@pytest.mark.parametrize("bibtex", [False, True])
def test_the_command_prints_what_the_folder_owes(bibtex, tmp_path, capsys):
    folder = tmp_path / "Dataset510_SELMA3D" / "SelmaFinetuneTrainer__nnUNetPlans__3d_fullres"
    write_model(folder)
    assert cli.main(["cite", str(folder), *(["--bibtex"] if bibtex else [])]) == 0
    out = capsys.readouterr().out
    for work in (works.NNUNET, works.SELMA3D, works.VESSAP, works.THIS_PACKAGE):
        assert (work.bibtex if bibtex else work.sentence) in out
    assert "not recorded" in out
    if bibtex:  # all but the entries is comments
        outside = re.sub(r"@\w+\{.*?\n\}", "", out, flags=re.DOTALL)
        assert all(line.startswith("%") for line in outside.splitlines() if line)


def test_a_folder_that_is_no_model_ends_with_a_sentence(tmp_path, capsys):
    assert cli.main(["cite", str(tmp_path)]) == 2
    assert "plans.json" in capsys.readouterr().err
