"""`python -m modelexport_optimum`: the same as the program `modelexport-optimum`."""

from modelexport_optimum.system.import_path import forget_current_directory

forget_current_directory()

from modelexport_optimum.cli.main import main  # noqa: E402 (what it imports is looked for without)

if __name__ == "__main__":
    main()
