"""`python -m weightguard`."""

from weightguard.cli.main import process

if __name__ == "__main__":
    process()
