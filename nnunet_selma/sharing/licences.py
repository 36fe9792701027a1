"""Licences of published weights, and the open question about the licence of SELMA3D's data."""

from dataclasses import dataclass

from nnunet_selma.errors import SelmaError

SELMA3D_QUESTION = (
    "The licence of SELMA3D's data is stated in two ways: its entry in the BioImage Archive (S-BIAD1196) says CC BY 4.0, and the data page "
    "of the challenge says CC BY-NC. Until the organisers settle it, treat data, and weights trained on them, as non-commercial."
)


@dataclass(frozen=True)
class Licence:
    """A licence by its SPDX identifier."""

    spdx: str
    title: str
    url: str
    commercial: bool = True
    """True if it allows commercial use."""

    @property
    def on_hub(self) -> str:
        """The identifier as a hub writes it."""
        return self.spdx.lower()


_CREATIVE = "https://creativecommons.org/licenses"
_SPDX = "https://spdx.org/licenses"
LICENCES: tuple[Licence, ...] = (
    Licence(
        "CC-BY-NC-4.0", "Creative Commons Attribution-NonCommercial 4.0", f"{_CREATIVE}/by-nc/4.0/legalcode", False
    ),
    Licence(
        "CC-BY-NC-SA-4.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
        f"{_CREATIVE}/by-nc-sa/4.0/legalcode",
        False,
    ),
    Licence("CC-BY-4.0", "Creative Commons Attribution 4.0", f"{_CREATIVE}/by/4.0/legalcode"),
    Licence("CC-BY-SA-4.0", "Creative Commons Attribution-ShareAlike 4.0", f"{_CREATIVE}/by-sa/4.0/legalcode"),
    Licence("CC0-1.0", "Creative Commons Zero 1.0", "https://creativecommons.org/publicdomain/zero/1.0/legalcode"),
    Licence("Apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    Licence("MIT", "MIT License", f"{_SPDX}/MIT.html"),
    Licence("BSD-3-Clause", "BSD 3-Clause License", f"{_SPDX}/BSD-3-Clause.html"),
)


def licence_named(name: str) -> Licence:
    """The licence of an SPDX identifier in any case; raises `SelmaError`, which lists the known ones, for another."""
    for licence in LICENCES:
        if licence.on_hub == name.strip().lower():
            return licence
    known = ", ".join(licence.on_hub for licence in LICENCES)
    raise SelmaError(f"--license {name}: is not known; choose one of {known}")


def licence_text(licence: Licence, name: str, author: str | None, *, selma3d: bool | None) -> str:
    """The content of LICENSE: a notice with the identifier and the address of the full text.

    Args:
        licence: the chosen licence.
        name: name of the model.
        author: holder of the rights; None where it was not given.
        selma3d: True if the model is of SELMA3D's data, False if it is not, None where that is not known (`ResultFacts.of_selma3d`).
    """
    holder = author or "not known: who holds the rights; ask whoever published this folder."
    return (
        f"SPDX-License-Identifier: {licence.spdx}\n\n"
        f"{name}: the weights and the files of this folder\n"
        f"Rights: {holder}\n\n"
        f"They are licensed under the {licence.title}.\nFull text: {licence.url}\n\n"
        f"Training data\n\n{selma3d_in_words(selma3d)}\n"
    )


def selma3d_in_words(selma3d: bool | None) -> str:
    """The question about the licence of SELMA3D's data, as far as it concerns a model: True, False, or None where that is not known."""
    if selma3d is False:
        return "By the record of their conversion, or the names of the cases, they are not SELMA3D's. The training started from random weights."
    beginning = (
        "They are SELMA3D's. "
        if selma3d
        else "Not known: whether data of SELMA3D are among them, or among those of an ancestor of the weights. If so, this holds: "
    )
    return beginning + SELMA3D_QUESTION
