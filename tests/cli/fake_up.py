"""`regionsearch up` with four fake processes in place of the real ones."""

from __future__ import annotations

from regionsearch import supervisor
from regionsearch.cli import main

supervisor.MODULES.update(dict.fromkeys(supervisor.MODULES, "tests.cli.fake_process"))
supervisor.FIRST_DELAY_S = 0.05

main()
