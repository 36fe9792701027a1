import pytest

from nnunet_selma.conversion.spacing import SpacingSources, default_spacing, spacing_of
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import named

NUCLEI, PROTEIN = named("cell_nuclei"), named("protein")  # 5 × 0.54 × 0.54 µm, and no voxel size in the table


def sources(structure=NUCLEI, *, in_layout=True, header=None, factor=(1.0, 1.0, 1.0)):
    return SpacingSources(
        name="brain.tif", structure=structure, in_layout=in_layout, header_um_zyx=header, level_factor=factor
    )


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ([sources()], "physical"),
        ([sources(), sources()], "physical"),
        ([sources(), sources(named("microglia"))], "voxel"),
        ([sources(PROTEIN)], "voxel"),
        ([sources(None, in_layout=False)], "physical"),
        ([sources(in_layout=False), sources(named("microglia"), in_layout=False)], "physical"),
    ],
)
def test_default(volumes, expected):
    assert default_spacing(volumes) == expected


@pytest.mark.parametrize(
    ("volume", "spacing", "size", "source"),
    [
        (sources(), "physical", (5, 0.54, 0.54), "from the table"),
        (sources(header=(5.0, 0.6, 0.6)), "physical", (5, 0.54, 0.54), "from the table"),
        (sources(header=(5.0, 2.0, 2.0)), "header", (5, 2, 2), "from the header"),
        (sources(header=(5.0, 2.0, 2.0)), "voxel", (1, 1, 1), "voxels"),
        (sources(header=(5.0, 2.0, 2.0)), (3.0, 2.0, 1.0), (3, 2, 1), "from --spacing"),
        (sources(), (0.005, 0.002, 0.002), (0.005, 0.002, 0.002), "mm (z, y, x), from --spacing"),
        (sources(), (1.0, 1.0, 1.0), (1, 1, 1), "voxels"),
        (sources(in_layout=False, header=(5.0, 2.0, 2.0)), "physical", (5, 2, 2), "from the header"),
        (sources(factor=(1.0, 2.0, 2.0)), "physical", (5, 1.08, 1.08), "times 1 × 2 × 2 for the level"),
        (sources(factor=(2.0, 2.0, 2.0)), (3.0, 2.0, 1.0), (6, 4, 2), "times 2 × 2 × 2 for the level"),
        (sources(header=(10.0, 1.0, 1.0), factor=(2.0, 2.0, 2.0)), "header", (10, 1, 1), "from the header"),
    ],
)
def test_voxel_size(volume, spacing, size, source):
    written = spacing_of(volume, spacing)
    assert written.size_zyx == pytest.approx(size)
    assert source in str(written)


@pytest.mark.parametrize("spacing", ["header", "physical"])
def test_a_voxel_size_that_nothing_states(spacing):
    with pytest.raises(
        SelmaError,
        match=r"brain.tif: no header states the voxel size; .* --spacing Z,Y,X \(SELMA3D's brains of cell nucleus",
    ):
        spacing_of(sources(in_layout=False), spacing)


@pytest.mark.parametrize(
    ("header", "stops"), [((5.0, 0.54, 0.82), True), ((3.3, 0.54, 0.54), True), ((5.0, 0.54, 0.80), False)]
)
def test_header_and_table_that_are_far_apart(header, stops):
    if stops:
        with pytest.raises(SelmaError, match="say which is right with --spacing header or --spacing Z,Y,X"):
            spacing_of(sources(header=header), "physical")
    else:
        assert spacing_of(sources(header=header), "physical").size_zyx == (5, 0.54, 0.54)
