"""The systems of the SELMA3D teams, and ours: recipes, running one, and all of them under one budget."""
