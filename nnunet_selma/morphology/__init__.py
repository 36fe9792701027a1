"""Connected components, topology and centrelines of masks, of whole arrays or block by block."""
