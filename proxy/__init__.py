"""Tollgate: a rate-limiting, caching reverse proxy in front of the OpenAI API."""

__version__ = "0.1.0"
