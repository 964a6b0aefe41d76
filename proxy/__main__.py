"""`python -m proxy` is `tollgate`."""

from proxy.cli import main

if __name__ == "__main__":
    main(prog_name="tollgate")
