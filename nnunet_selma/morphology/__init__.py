"""Connected components, topology and centrelines of masks, computed block by block."""
