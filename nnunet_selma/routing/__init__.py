"""Prediction of a folder by several models: a router chooses the model of each image."""
