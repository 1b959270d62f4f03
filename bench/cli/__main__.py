"""Entry point of `python -m bench.cli`."""

from bench.cli import main

if __name__ == "__main__":
    main()
