"""The results of a batch, as files: what a line of them says, and how every line of the batch gets into exactly one of them.

``forms.py`` says how a result is written and read back, ``codes.py`` by which code a line failed, ``file.py`` how one file
is appended to, ``writing.py`` which lines go where and how a second run goes on, ``following.py`` how a batch is written
while it runs. Nothing here knows SQL: the database is behind ``writing.Lines`` and ``following.Source``.
"""
