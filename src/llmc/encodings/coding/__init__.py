"""How integers become bytes, and back."""
