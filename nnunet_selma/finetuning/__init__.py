"""From pretrained weights to a segmentation: finding them, carrying them over, heads, losses, adapters, decision threshold."""
