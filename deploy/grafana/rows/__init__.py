"""What the dashboards show, a module for each row, and how it is put together."""
