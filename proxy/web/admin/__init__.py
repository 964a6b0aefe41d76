"""The admin API: what the command line does, over HTTP, for whoever has the token."""
