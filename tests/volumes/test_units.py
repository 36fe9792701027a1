"""Voxel sizes worked out by hand, and the same unit in every place that reads one."""

import nibabel
import numpy as np
import pytest
import tifffile

from nnunet_selma.nnunet.voxel_sizes import dataset_unit
from nnunet_selma.prediction.grids import spacing_in_plans, trained_in_voxels
from nnunet_selma.running.json_files import write_json
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.units import spacing_from_header, spacing_in_um, to_um, um_in_header_unit, um_of_unit
from tests.conftest import write_image

# header, micrometres in its unit, voxel size in µm
HEADERS = [
    ((1.0, 1.0, 1.0), None, None),
    ((0.002, 0.001866, 0.001866), 1000.0, (2.0, 1.866, 1.866)),
    ((6.0, 1.625, 1.625), 1.0, (6.0, 1.625, 1.625)),
    ((0.5, 0.5, 0.5), 1.0, (0.5, 0.5, 0.5)),
    ((1.0, 1.0, 2.0), 1.0, (1.0, 1.0, 2.0)),
    ((0.0, 1.0, 2.0), None, None),
    ((0.0, 0.0, 0.0), None, None),
    ((float("nan"), 1.0, 2.0), None, None),
    ((float("inf"), 1.0, 2.0), None, None),
]


@pytest.mark.parametrize(("header", "unit", "um"), HEADERS)
def test_the_unit_of_a_header(header, unit, um):
    assert um_in_header_unit(header) == unit
    assert spacing_from_header(header).um_zyx == um
    assert (spacing_from_header(header).guess is None) == (um is None)


UNITS = {
    1e-4: ["Å", "\u212b", "angstrom", "Angstroms", "ångström"],
    1e-3: ["nm", "NM", "nanometer", "nanometre", "nanometers"],
    1.0: ["µm", "μm", "um", "\\u00B5m", "\\u00b5m", "micron", "Microns", "micrometer", "micrometre", "µM", " um "],
    1e3: ["mm", "millimeter", "millimetres"],
    1e4: ["cm", "centimeter"],
    1e6: ["m", "meter", "METER", "metre", "meters"],
    25400.0: ["in", "inch", "inches", '"'],
}


@pytest.mark.parametrize(("um", "unit"), [(um, unit) for um, units in UNITS.items() for unit in units])
def test_names_of_units(um, unit):
    assert um_of_unit(unit) == um
    assert to_um(2, unit) == pytest.approx(2 * um)


@pytest.mark.parametrize("unit", ["pixel", "pixels", "voxel", "", None, "s", "unknown", "mmm", "second"])
def test_other_words_are_no_units_of_length(unit):
    assert um_of_unit(unit) is None
    assert to_um(1.0, unit) is None


def test_lengths_that_are_none():
    assert [to_um(value, "mm") for value in (0.0, -1.0, float("nan"), float("inf"))] == [None] * 4
    assert spacing_in_um([5, 1600, 1600], ["µm", "nm", "nm"]) == (5.0, 1.6, 1.6)
    assert spacing_in_um([5, 1.6, 1.6], ["µm", None, "µm"]) is None


# numbers, the unit in the header, voxel size in µm; a unit counts, except mm for voxels that no microscope has
EXPLICIT = [
    ((5.0, 1.6, 1.6), "micron", (5.0, 1.6, 1.6), False),
    ((1.0, 1.0, 1.0), "micron", (1.0, 1.0, 1.0), False),
    ((200.0, 200.0, 200.0), "micron", (200.0, 200.0, 200.0), False),
    ((0.05, 0.05, 0.05), "micron", (0.05, 0.05, 0.05), False),
    ((0.2, 0.2, 0.2), "mm", (200.0, 200.0, 200.0), False),
    ((5e-6, 1.6e-6, 1.6e-6), "meter", (5.0, 1.6, 1.6), False),
    ((-5.0, 1.6, 1.6), "micron", (5.0, 1.6, 1.6), False),
    ((5.0, 1.6, 1.6), "mm", (5.0, 1.6, 1.6), True),
    ((1.0, 1.0, 1.0), "mm", None, False),
    ((0.0, 1.6, 1.6), "micron", None, False),
]


@pytest.mark.parametrize(("numbers", "unit", "um", "guessed"), EXPLICIT)
def test_an_explicit_unit_counts(numbers, unit, um, guessed, tmp_path):
    spacing = spacing_from_header(numbers, unit)
    assert (spacing.um_zyx, spacing.guess is not None) == (um, guessed)
    if min(numbers) > 0:
        image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint16), np.diag([*numbers[::-1], 1]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii.gz")
        volume = open_volume(tmp_path / "a.nii.gz")
        assert volume.spacing_um_zyx == (None if um is None else pytest.approx(um, rel=1e-4))
        assert (volume.spacing_guess is not None) == guessed


def test_nrrd_and_metaimage_name_units(tmp_path):
    header = "NRRD0004\ntype: uint16\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: raw\n"
    voxels = np.zeros(24, "<u2").tobytes()
    spacings = 'spacings: 200 200 500\nunits: "um" "um" "um"\n\n'
    (tmp_path / "a.nrrd").write_bytes(f"{header}{spacings}".encode() + voxels)
    directions = "space: left-posterior-superior\nspace directions: (0.2,0,0) (0,0.2,0) (0,0,0.5)\n"
    (tmp_path / "b.nrrd").write_bytes(f'{header}{directions}space units: "mm" "mm" "mm"\n\n'.encode() + voxels)
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementSpacing = 0.2 0.2 0.5\nDistanceUnits = mm\n"
    (tmp_path / "c.mha").write_bytes(f"{meta}ElementType = MET_USHORT\nElementDataFile = LOCAL\n".encode() + voxels)
    for name in ("a.nrrd", "b.nrrd", "c.mha"):
        volume = open_volume(tmp_path / name)
        assert volume.spacing_um_zyx == pytest.approx((500, 200, 200))
        assert volume.spacing_guess is None


OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'
IMAGE = (
    '<Image ID="Image:{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYZCT" Type="uint16" SizeX="4" SizeY="3" SizeZ="2" '
    'SizeC="1" SizeT="1" {1}><Channel ID="Channel:{0}:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="2"/></Pixels></Image>'
)
OME_SIZES = [
    ('PhysicalSizeX="1.6" PhysicalSizeY="1.6" PhysicalSizeZ="5"', (5.0, 1.6, 1.6)),
    ("PhysicalSizeX='1,6' PhysicalSizeY='1,6' PhysicalSizeZ='5,0'", (5.0, 1.6, 1.6)),
    (
        'PhysicalSizeX="1600" PhysicalSizeXUnit="nm" PhysicalSizeY="1.6" PhysicalSizeZ="0.005" PhysicalSizeZUnit="mm"',
        (5.0, 1.6, 1.6),
    ),
    ('PhysicalSizeX="1.6" PhysicalSizeY="1.6"', None),
    ('PhysicalSizeX="wide" PhysicalSizeY="1.6" PhysicalSizeZ="5"', None),
    ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeZ="1"', None),
]


@pytest.mark.parametrize(("sizes", "um"), OME_SIZES)
def test_ome_xml_is_read_by_element(sizes, um, tmp_path):
    voxels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    xml = OME.format(IMAGE.format(0, sizes)).encode()
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels, description=xml, metadata=None, photometric="minisblack")
    volume = open_volume(tmp_path / "a.ome.tif")
    assert volume.spacing_um_zyx == um
    np.testing.assert_array_equal(volume.read(), voxels)
    for z, plane in enumerate(voxels):
        (tmp_path / "slices").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "slices" / f"Z{z}.ome.tif", plane, description=xml, metadata=None)
    assert open_volume(tmp_path / "slices").spacing_um_zyx == um


@pytest.mark.parametrize(
    ("unit", "more", "um"),
    [
        ("um", "", 5.0),
        ("\\u00B5m", "", 5.0),
        ("micron", "zunit=mm\n", 5000.0),
        ("pixel", "", None),
        ("um", "zunit=s\n", None),
    ],
)
def test_imagej_has_a_unit_for_each_axis(unit, more, um, tmp_path):
    text = f"ImageJ=1.53t\nimages=2\nslices=2\nunit={unit}\nspacing=-5.0\nloop=false\n{more}"
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((2, 3, 4), np.uint16),
        description=text.encode(),
        metadata=None,
        photometric="minisblack",
        resolution=(0.5, 0.25),
    )
    assert open_volume(tmp_path / "a.tif").spacing_um_zyx == (None if um is None else (um, 4.0, 2.0))


def test_an_atlas_may_have_larger_voxels_in_mm():
    assert spacing_from_header((0.5, 0.2, 0.2), mm_below=1.0).um_zyx == (500.0, 200.0, 200.0)
    assert spacing_from_header((25.0, 25.0, 25.0), mm_below=1.0).um_zyx == (25.0, 25.0, 25.0)
    assert spacing_from_header((1.0, 1.0, 1.0), mm_below=1.0).um_zyx is None


@pytest.mark.parametrize(("header", "unit", "um"), HEADERS[:5])
def test_files_plans_and_datasets_agree_on_the_unit(header, unit, um, tmp_path, folders):
    nifti = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint16), np.diag([*header[::-1], 1]))  # without a unit
    nibabel.save(nifti, tmp_path / "a.nii.gz")
    for name in ("a.nrrd", "a.mha"):
        write_image(tmp_path / name, np.zeros((2, 3, 4), np.uint16), header)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        assert open_volume(tmp_path / name).spacing_um_zyx == (None if um is None else pytest.approx(um, rel=1e-4))
    plans = {"original_median_spacing_after_transp": list(header)}
    assert trained_in_voxels(plans) == (unit is None)
    expected = (1.0, 1.0, 1.0) if um is None else pytest.approx(header)
    assert spacing_in_plans(um, plans) == expected
    (folders.raw / "Dataset001_A").mkdir()
    write_json(folders.raw / "Dataset001_A" / "selma_manifest.json", {"cases": {"a": {"spacing_zyx": list(header)}}})
    assert dataset_unit("Dataset001_A", folders) == {None: "voxel", 1.0: "um", 1000.0: "mm"}[unit]
