"""Archives: files of many sessions' transcripts, written before retention removes them, and imported again.

An archive is what ``inturn session export`` writes (``inturn.transcripts`` has the form), one session after the other, in
one gzip file. ``writing`` makes one, chunk by chunk, each of them durable before its rows go; ``drafts`` says what a place
for it has to do, ``directory`` and ``objects`` do it; ``reading`` finds the transcripts in one, and ``importing`` makes
sessions of them. SQL is in ``inturn.models.store.transcripts``.
"""
