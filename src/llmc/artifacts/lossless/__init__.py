"""Folders of any tensors, smaller and the same to the bit."""
