"""Bytes on disk, read strictly and without meaning."""
