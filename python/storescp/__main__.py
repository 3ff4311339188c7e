"""`python -m storescp`."""

from storescp.cli import main

if __name__ == "__main__":
    main()
