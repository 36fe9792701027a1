"""Does pretraining pay? A study with screening, confirmation, curves and label efficiency."""
