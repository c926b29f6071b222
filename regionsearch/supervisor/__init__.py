"""All four processes on this machine: started together, kept alive, stopped together.

This is what `regionsearch up` runs on a laptop. On servers a container engine or Kubernetes does this.
"""

from regionsearch.supervisor.plan import Plan
from regionsearch.supervisor.supervising import Supervisor

__all__ = ["Plan", "Supervisor"]
