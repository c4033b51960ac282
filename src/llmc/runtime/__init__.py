"""Models that run: opened with their own class, or with weights that stay compressed in memory."""
