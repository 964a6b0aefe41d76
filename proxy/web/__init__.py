"""HTTP: the public and the operations application."""
