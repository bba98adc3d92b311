"""Execution providers: which ones this machine has, a session on one, and what it took.

It gives to others: `choice.choose_providers` and `choose_provider`, a `Provider` for a name
that a user gives; `session.open_session`, the one place that makes a session on it;
`session.assigned_nodes`, which nodes of a graph each provider took; `placement.Placement`,
the same by module; and `listing.list_providers`, what there is on this machine.

It must not know modules, tags, or what is run and why. It imports packages of providers that
are installed, and nothing that comes with a model.
"""
