"""hawse's entry point."""


def main() -> int:
    """Run the command line; returns the exit status."""
    return 0
