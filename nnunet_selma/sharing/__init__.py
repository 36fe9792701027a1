"""Handing a trained model on: repositories for a hub, containers, citations."""
