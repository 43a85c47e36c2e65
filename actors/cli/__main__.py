"""`python -m rayfold.actors.cli`: the command line, where its script is not installed."""

from .main import main

main()
