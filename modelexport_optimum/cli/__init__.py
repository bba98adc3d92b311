"""The commands: parse the command line, call one function, print what it returns.

It provides: `main.main`, the program. `main` and `view_commands` have a function for each command,
`options` turns the declared options into Typer's, and the other files print.

It may import every other room, and no other room may import it. It must not have logic that a
caller in Python would lack. It imports nothing heavy before a command runs, so that `--help` costs
no more than that of a bare Typer app.
"""
