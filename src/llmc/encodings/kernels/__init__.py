"""Reference decoders, one file per container, written to be read and to be shipped inside artifacts.

They share no code with the writers, so that `llmc verify` decodes by a second implementation.
"""
