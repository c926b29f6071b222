"""`regionsearch up` with four fake processes in place of the real ones."""

from __future__ import annotations

from regionsearch.cli import main
from regionsearch.supervisor import child, supervising

child.MODULES.update(dict.fromkeys(child.MODULES, "tests.cli.fake_process"))
supervising.FIRST_DELAY_S = 0.05

main()
