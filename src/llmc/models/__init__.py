"""A folder opened: as Targets to work on, or as a module that runs."""
