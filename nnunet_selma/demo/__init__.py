"""The whole path on a synthetic brain, with a report."""
