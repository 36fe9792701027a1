"""Long work: processes, clusters, cores and devices, progress, files that are whole or absent."""
