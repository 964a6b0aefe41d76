"""Redis, and what speaks its protocol: the multiplexed connection, the topologies behind a URL, scripts, pub/sub."""
