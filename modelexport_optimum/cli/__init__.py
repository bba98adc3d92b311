"""The commands: parse the command line, call one function, print what it returns."""
