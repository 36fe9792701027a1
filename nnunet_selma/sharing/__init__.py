"""Handing a trained model on: containers for the challenge, repositories for a hub, packages for other programs, citations."""
