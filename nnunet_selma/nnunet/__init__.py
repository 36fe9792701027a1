"""nnU-Net as this package meets it: its folders, commands, plans, checkpoints and preprocessed data, and the settings in its plans."""
