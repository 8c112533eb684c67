"""`python -m ownstack`: what the launcher runs."""

from ownstack.cli import main

if __name__ == "__main__":
    main()
