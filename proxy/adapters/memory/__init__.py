"""Embedded twins of the Redis adapters: the default on one machine."""
