from pathlib import Path

from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.prediction.volume_prediction import VolumePrediction


def test_settings_come_back_from_json(tmp_path):
    settings = VolumePrediction(
        inputs=(tmp_path / "a", tmp_path / "b"),
        output=tmp_path / "c.ome.zarr",
        model=ModelSettings(folder=tmp_path, folds=("0", "all")),
        spacing_um_zyx=(4.0, 1.0, 1.0),
        mask=Path(tmp_path / "m.tif"),
    )
    assert VolumePrediction.from_json(settings.as_json()) == settings
