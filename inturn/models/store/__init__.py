"""The store verbs: one verb, one transaction, one transition.

The asking side's: ``opening`` (sessions), ``sending`` and ``overtaking`` (prompts, and those that do not wait behind the
others), ``schedules`` (prompts by the clock), ``reading``, ``lanes``, ``halting``, and ``diagnosis`` (what a turn waits for:
``situation`` is what is looked at, ``causes`` what is made of it). ``working`` and ``sweeping`` are the working side's, and
take lists, so that one transaction carries many turns. Both sides': ``waking`` (when a session is ready), ``presence`` (who
is alive), ``retention``.

Whoever changes a session's turns holds its lease row's lock, and locks in one order: schedule, session, lease, turns. A
worker's transaction never takes the session's lock (inserting takes a key share, which sends do not block), so there is no
circle.
"""
