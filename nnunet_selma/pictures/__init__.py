"""Pictures of volumes, segmentations, trainings and evaluations."""
