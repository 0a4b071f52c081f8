"""`python -m efftrain` behaves like the `efftrain` command."""

from efftrain.cli import main

if __name__ == "__main__":
    main()
