"""Side-by-side measurements: `python -m benchmarks` runs them and refreshes docs/performance.md."""
