"""What programs are shown of what is kept: one form for `--json` on the command line and for the admin API."""
