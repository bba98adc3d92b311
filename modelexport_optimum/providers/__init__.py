"""Execution providers: those of this machine, sessions on them, and the nodes that each one took.

It provides: `choice.choose_providers` and `choose_provider`, which return a `Provider` for a name
from the user; `session.open_session`, the only place that makes a session on a provider;
`session.assigned_nodes`, the nodes of a graph that each provider took; `placement.Placement`, the
same by module; and `listing.list_providers`, the providers of this machine.

It must not know modules, tags, or the purpose of a run. It imports installed packages of providers,
and nothing that comes with a model.
"""
