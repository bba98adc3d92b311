"""The commands: parse the command line, call one function, print what it returns.

It gives to others: `main.main`, the program. `main` and `view_commands` have a function for each
command, `options` turns the declared options into Typer's, the others print.

It may import every other room, and no other may import it. It must not decide anything that a
caller in Python would miss, and it imports nothing heavy before a command runs, so that `--help`
costs no more than that of a bare Typer app.
"""
