"""The folder that is written, and the verbs on finished ones."""
