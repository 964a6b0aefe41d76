"""The world behind the ports: each module keeps the promises that `ports.py` writes down."""
