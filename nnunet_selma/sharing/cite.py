"""Works that a paper about a model must cite."""

from dataclasses import dataclass

from nnunet_selma.sharing.results import ResultFacts


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A work to cite, and why."""

    key: str
    """Key of the BibTeX entry."""
    reason: str
    """Part of the model that rests on the work."""
    sentence: str
    """The reference as text."""
    doi: str
    """Empty for a program without one."""
    bibtex: str


_NNUNET = Citation(
    key="isensee2021nnunet",
    reason="planning, training and prediction are nnU-Net's",
    doi="10.1038/s41592-020-01008-z",
    sentence="Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., Maier-Hein, K. H. (2021). nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nature Methods 18, 203–211. https://doi.org/10.1038/s41592-020-01008-z",
    bibtex="@article{isensee2021nnunet, title={nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation}, "
    "author={Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens and Maier-Hein, Klaus H.}, "
    "journal={Nature Methods}, volume={18}, pages={203--211}, year={2021}, doi={10.1038/s41592-020-01008-z}}",
)


def citations(facts: ResultFacts) -> list[Citation]:
    """Works to cite for a model."""
    return [_NNUNET]


def open_points(facts: ResultFacts) -> list[str]:
    """Sentences about works that have to be cited too, and that the results folder does not name."""
    return []
