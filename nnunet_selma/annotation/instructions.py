"""`README.md` in a folder of cubes: how to annotate them."""

INSTRUCTIONS = """# Cubes to annotate

Each folder `cube_0001`, `cube_0002`, … holds

- `image.nii.gz`: the cube, with its true voxel size, at its place in the brain (`image_channel_1.nii.gz`, … if there are more channels),
- `image.ome.zarr`: the same with all channels,
- `label.nii.gz`: the label to fill,
- `context.ome.zarr`: the surroundings, for the eye only; they are **not to be annotated**,
- `cube.json`: the brain, the place and the reason why this cube was chosen.

`sheet.png` shows all cubes; begin with the first.

## Values in the label

| value | meaning |
|---|---|
| 0 | background |
| 1, 2, … | structures: {classes} |
| 255 | not annotated: paint what you leave out or cannot decide |

A cube may be half done: everything that is not looked at must be 255, because 0 says that nothing is there. {start}
Keep the name, the folder and the size of `label.nii.gz`, and save it as NIfTI. Other copies in the folder are ignored.

## ITK-SNAP

1. File, Open Main Image: `image.nii.gz`.
2. Segmentation, Open Segmentation: `label.nii.gz`.
3. Paint with the brush or the polygon. For value 255 add a label with that number in the Label Editor.
4. Segmentation, Save Segmentation Image, to `label.nii.gz`, NIfTI.

ITK-SNAP counts in mm: a voxel of 2 µm is shown as 0.002 mm.

## napari

    nnunet-selma view cube_0001

opens the image, its surroundings and the label. Paint in the layer `label`; the button *Save label.nii.gz* at the side saves it and keeps
the version before in `versions/`. What is not saved yet lies in `unsaved_0001.nii.gz`, … after every stroke, also when napari is
killed. The next `view` says how to see it, and how to take it: give `label.nii.gz` another name, and that file the name `label.nii.gz`.
Other layers of labels are not saved; what they hold in the cube lies in such a file when the window is closed.

## Virtual reality

Programs for VR (Arivis, syGlass, Imaris) import `image.ome.zarr`, or `image.nii.gz` as TIFF through Fiji. Export the annotation as label image
of the same size, and save it as `label.nii.gz` (for example with Fiji's NIfTI plugin, or `nibabel`). Masks that hold 0 and 255 mean
*not annotated* by 255: write 1 for the structure.

## Next

When some cubes are done, give this folder to `nnunet-selma convert annotated`. The files here are only read. The next
`nnunet-selma propose` into this folder adds cubes and changes none of these. To refuse a cube, remove its folder: it is not proposed again.
"""
"""Text with the places `classes` and `start`."""


def instructions(classes: dict[int, str] | None) -> str:
    """The README for labels that a model has filled in, whose classes it names, or that are empty."""
    if classes is None:
        return INSTRUCTIONS.format(
            classes="as many as you need, the same number for the same structure in every cube",
            start="Labels are 0 everywhere when they are handed over.",
        )
    return INSTRUCTIONS.format(
        classes=named_classes(classes),
        start="Labels that a model has filled in hold its prediction: correct it. A label that comes back unchanged is asked about.",
    )


def named_classes(classes: dict[int, str]) -> str:
    """Value and name of each class, for a sentence."""
    return ", ".join(f"{value} {name}" for value, name in sorted(classes.items()))
