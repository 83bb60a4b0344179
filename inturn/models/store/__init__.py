"""The store verbs: one verb, one transaction, one transition.

``sending`` and ``reading`` are the asking side's; ``working`` and ``sweeping`` the working side's, and take lists, so that
one transaction carries many turns; ``presence`` says who is alive; ``retention`` removes.

Whoever changes a session's turns holds its lease row's lock, and locks in one order: session, lease, turns. A worker's
transaction never takes the session's lock (inserting takes a key share, which sends do not block), so there is no circle.
"""
