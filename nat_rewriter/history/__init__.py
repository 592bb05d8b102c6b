"""History: who had which tuple when, kept on disk and asked afterwards.

::

    watcher -> recorder (bounded queue, thread) -> live part -> sealed parts        partition files in one directory
    question -> reader  -> parts that overlap   -> merged records -> answers

A part is a SQLite file for a span of time. While it is live it is a journal of sightings (a flow was opened, seen,
closed or gone), one row for each half second. Once it is full its sightings are merged into records and kept sorted
twice, by the tuple on the wire and by the client, in compressed pages; retention deletes whole files.
"""
