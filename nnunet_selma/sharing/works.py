"""Publications that a model may rest on, each as a sentence and as BibTeX.

Sources: the reference list of the SELMA3D challenge paper (arXiv 2501.03880), and for the others arXiv. Of many authors the first three are
named. An arXiv paper has the DOI that arXiv gives it.
"""

from dataclasses import dataclass

from nnunet_selma import __version__


@dataclass(frozen=True, kw_only=True)
class Work:
    """A publication or a program."""

    key: str
    """Key of its BibTeX entry."""
    authors: tuple[str, ...]
    """Authors as "Family, G."; the first three where `others` is true."""
    others: bool = True
    """True if there are more authors."""
    title: str
    year: int | None = None
    """Year of publication; None for this package, whose version is stated."""
    journal: str = ""
    """Journal, volume and pages apart, or proceedings."""
    volume: str = ""
    pages: str = ""
    doi: str = ""
    """Empty for a program without one."""

    @property
    def sentence(self) -> str:
        """The reference as text."""
        authors = ", ".join(self.authors) + (" et al." if self.others else "")
        place = " ".join(part for part in (self.journal, self.volume) if part)
        place = f" {place}{f', {self.pages}' if self.pages else ''}" if place else ""
        year = f" ({self.year})" if self.year else ""
        end = f"{place}{year}."
        link = f" https://doi.org/{self.doi}" if self.doi else ""
        return f"{authors.removesuffix('.')}. {self.title}.{end if end != '.' else ''}{link}"

    @property
    def bibtex(self) -> str:
        """The reference as a BibTeX entry."""
        names = " and ".join((*self.authors, *(("others",) if self.others else ())))
        # a second pair of braces keeps capitals, and the name of a group whole
        fields = {
            "author": names if "," in self.authors[0] else f"{{{names}}}",
            "title": f"{{{self.title}}}",
            "journal": self.journal,
            "volume": self.volume,
            "pages": self.pages.replace("–", "--"),
            "year": str(self.year or ""),
            "doi": self.doi,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{'article' if self.journal else 'misc'}{{{self.key},", *lines, "}"])


def _arxiv(number: str, key: str, authors: tuple[str, ...], title: str) -> Work:
    """A paper on arXiv; its year is that of its number."""
    return Work(
        key=key,
        authors=authors,
        title=title,
        year=2000 + int(number[:2]),
        journal=f"arXiv {number}",
        doi=f"10.48550/arXiv.{number}",
    )


THIS_PACKAGE = Work(
    key="nnunet_selma",
    authors=("nnunet-selma contributors",),
    others=False,
    title=f"nnunet-selma, version {__version__}: self-supervised pretraining of nnU-Net for light-sheet microscopy",
)
NNUNET = Work(
    key="isensee2021nnunet",
    authors=("Isensee, F.", "Jaeger, P.", "Kohl, S."),
    title="nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    year=2021,
    journal="Nature Methods",
    volume="18",
    pages="203–211",
    doi="10.1038/s41592-020-01008-z",
)
RESIDUAL_ENCODER = _arxiv(
    "2404.09556",
    "isensee2024revisited",
    ("Isensee, F.", "Wald, T.", "Ulrich, C."),
    "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation",
)

SELMA3D = _arxiv(
    "2501.03880",
    "chen2025selma3d",
    ("Chen, Y.", "Al-Maskari, R.", "Horvath, I."),
    "SELMA3D challenge: Self-supervised learning for 3D light-sheet microscopy image segmentation",
)
DELIVR = Work(
    key="kaltenecker2024delivr",
    authors=("Kaltenecker, D.", "Al-Maskari, R.", "Negwer, M."),
    title="Virtual reality empowered deep learning analysis of brain activity",
    year=2024,
    journal="Nature Methods",
    volume="21",
    pages="1306–1315",
    doi="10.1038/s41592-024-02245-2",
)
VESSAP = Work(
    key="todorov2020vessap",
    authors=("Todorov, M.", "Paetzold, J.", "Schoppe, O."),
    title="Machine learning analysis of whole mouse brain vasculature",
    year=2020,
    journal="Nature Methods",
    volume="17",
    pages="442–449",
    doi="10.1038/s41592-020-0792-1",
)
SHANEL = Work(
    key="zhao2020shanel",
    authors=("Zhao, S.", "Todorov, M.", "Cai, R."),
    title="Cellular and molecular probing of intact human organs",
    year=2020,
    journal="Cell",
    volume="180",
    pages="796–812",
    doi="10.1016/j.cell.2020.01.030",
)
DISCO_MS = Work(
    key="bhatia2022discoms",
    authors=("Bhatia, H.", "Brunner, A.", "Öztürk, F."),
    title="Spatial proteomics in three-dimensional intact specimens",
    year=2022,
    journal="Cell",
    volume="185",
    pages="5040–5058",
    doi="10.1016/j.cell.2022.11.021",
)
SOURCE_OF_STRUCTURE = {"cfos_neuron": DELIVR, "blood_vessel": VESSAP, "cell_nuclei": SHANEL, "AD_plaques": DISCO_MS}
"""Structure of SELMA3D's annotated data to the paper that its images come from (challenge paper, section 3.1)."""

MASKED_AUTOENCODER = Work(
    key="he2022mae",
    authors=("He, K.", "Chen, X.", "Xie, S."),
    title="Masked autoencoders are scalable vision learners",
    year=2022,
    journal="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    pages="16000–16009",
    doi="10.1109/CVPR52688.2022.01553",
)
SWIN_PRETRAINING = Work(
    key="tang2022swin",
    authors=("Tang, Y.", "Yang, D.", "Li, W."),
    title="Self-supervised pre-training of Swin transformers for 3D medical image analysis",
    year=2022,
    journal="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    pages="20730–20740",
    doi="10.1109/CVPR52688.2022.02007",
)
BYOL = _arxiv(
    "2006.07733",
    "grill2020byol",
    ("Grill, J.", "Strub, F.", "Altché, F."),
    "Bootstrap your own latent: A new approach to self-supervised learning",
)
SIMCLR = _arxiv(
    "2002.05709",
    "chen2020simclr",
    ("Chen, T.", "Kornblith, S.", "Norouzi, M."),
    "A simple framework for contrastive learning of visual representations",
)
DINO = _arxiv(
    "2104.14294",
    "caron2021dino",
    ("Caron, M.", "Touvron, H.", "Misra, I."),
    "Emerging Properties in Self-Supervised Vision Transformers",
)
IBOT = _arxiv(
    "2111.07832",
    "zhou2021ibot",
    ("Zhou, J.", "Wei, C.", "Wang, H."),
    "iBOT: Image BERT pre-training with online tokenizer",
)
PRETEXTS: dict[str, tuple[Work, ...]] = {
    "MaskedInpainting": (MASKED_AUTOENCODER, SELMA3D),
    "StructureInpainting": (MASKED_AUTOENCODER, SELMA3D),
    "Byol": (BYOL,),
    "Simclr": (SIMCLR,),
    "MultiTask": (SWIN_PRETRAINING, SELMA3D),
    "SelfDistillation": (DINO, IBOT),
}
"""Class of a pretext to the works that it follows, by its docstring."""

MONAI = Work(
    key="cardoso2022monai",
    authors=("Cardoso, M. J.", "Li, W.", "Brown, R."),
    title="MONAI: An open-source framework for deep learning in healthcare",
    year=2022,
    journal="arXiv 2211.02701",
    doi="10.48550/arXiv.2211.02701",
)
SWIN_UNETR = _arxiv(
    "2201.01266",
    "hatamizadeh2022swinunetr",
    ("Hatamizadeh, A.", "Nath, V.", "Tang, Y."),
    "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images",
)
ATTENTION_UNET = _arxiv(
    "1804.03999",
    "oktay2018attention",
    ("Oktay, O.", "Schlemper, J.", "Le Folgoc, L."),
    "Attention U-Net: Learning Where to Look for the Pancreas",
)
VIT_ADAPTER = _arxiv(
    "2205.08534",
    "chen2022vitadapter",
    ("Chen, Z.", "Duan, Y.", "Wang, W."),
    "Vision transformer adapter for dense predictions",
)
THREE_D_DINO = Work(
    key="xu2025threedino",
    authors=("Xu, T.", "Hosseini, S.", "Anderson, C."),
    title="A generalizable 3D framework and model for self-supervised learning in medical imaging",
    year=2025,
    journal="npj Digital Medicine",
    doi="10.1038/s41746-025-02035-w",
)
NETWORKS: dict[str, tuple[Work, ...]] = {
    "SwinUNETR": (SWIN_UNETR, MONAI),
    "AttentionUNet": (ATTENTION_UNET, MONAI),
    "ViTAdapter": (VIT_ADAPTER, THREE_D_DINO),
}
"""Class of a network of this package to the works that it follows; MONAI where its blocks are MONAI's."""
