"""`python -m modelexport_optimum`: the same as the program `modelexport-optimum`."""

from modelexport_optimum.cli.main import main

if __name__ == "__main__":
    main()
