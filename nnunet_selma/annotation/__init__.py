"""The annotation loop: which cubes of whole brains to annotate first, and how they are handed over."""
