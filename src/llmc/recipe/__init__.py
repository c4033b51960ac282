"""What is asked for, with the line of every value."""
