"""What happens around nnU-Net's prediction: which model a volume goes to, and what is removed from its segmentation."""
