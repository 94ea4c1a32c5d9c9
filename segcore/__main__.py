"""`python -m segcore`: the same as the command `segcore`."""

from segcore.cli.main import main

if __name__ == "__main__":
    main()
