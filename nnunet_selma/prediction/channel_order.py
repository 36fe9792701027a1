"""The channel of a file that becomes each channel of the model, where one file holds them all."""

from dataclasses import replace

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.volumes import inventory


def resolve_channels(settings: VolumePrediction) -> VolumePrediction:
    """The same settings with the channels of a file that holds several: by name, or in the order of the file where no name is the model's.

    Raises:
        SelmaError: the file has fewer channels than the model; or it has more, or only some of the names, so that the names do not decide.
    """
    if settings.channels is not None or len(settings.inputs) > 1:
        return settings
    (path,) = settings.inputs
    held = inventory(path, settings.scene, slice_pattern=settings.slice_pattern)
    settings.model.check_complete()
    names = settings.model.channel_names
    if held.channels == 1 or not names:
        return settings
    stored, asked = ([name.casefold() for name in listed] for listed in (held.channel_names, names))
    if len(set(asked)) == len(asked) and all(stored.count(name) == 1 for name in asked):
        return replace(settings, channels=tuple(stored.index(name) for name in asked))
    if held.channels == len(names) and not set(stored) & set(asked):
        return replace(settings, channels=tuple(range(len(names))))
    in_file = f" ({', '.join(held.channel_names)})" if held.channel_names else ""
    fault = f"{path}: has {counted(held.channels, 'channel')}{in_file}, and the model was trained on {len(names)} ({', '.join(names)})"
    if held.channels < len(names):
        raise SelmaError(f"{fault}; give one volume for each, in their order")
    raise SelmaError(f"{fault}; choose those of the file with --channel, in the order of the model's")


def channel_line(settings: VolumePrediction, names: tuple[str, ...]) -> str | None:
    """The channel of the file that each channel of the model is taken from, as "channels: 1 (WGA) as WGA"; None without a choice of channels."""
    if settings.channels is None or len(settings.inputs) > 1:
        return None
    stored = inventory(settings.inputs[0], settings.scene, slice_pattern=settings.slice_pattern).channel_names
    taken = zip(settings.channels, names, strict=True)
    return "channels: " + ", ".join(
        f"{number} ({stored[number]}) as {name}" if stored else f"{number} as {name}" for number, name in taken
    )
