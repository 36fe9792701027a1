"""How long work is run: processes, clusters, cores and devices, progress, files that are whole or absent."""
