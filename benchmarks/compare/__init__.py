"""``make compare``: what a user would pick instead, measured next to this project on the same machine.

A *peer* is a program, a library or a plain script of some 60 lines in `peers`, which runs in an
environment of its own (`environments`). `driver` runs there and answers with measurements; `peer` is our end
of it. `search`, `serving` and `whole` say what is measured, `results` keeps it case by case, and `page`
writes the comparison in ``docs``.
"""
