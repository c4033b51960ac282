"""A recipe planned, carried out, and finished."""
