"""`python -m segcore`: the same as the command `segcore`."""

from segcore.cli.main import run

if __name__ == "__main__":
    run()
