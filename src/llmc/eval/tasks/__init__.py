"""Questions with answers."""
