"""What makes training fast on a CPU: layers with the same results, and threads, workers and memory that do not get in each other's way."""
