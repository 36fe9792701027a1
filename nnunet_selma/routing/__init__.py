"""Prediction of a folder by several models: a router says which model each image goes to."""
