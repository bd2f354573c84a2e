"""The supervisor starts, measures, restarts and kills worker processes, one per loaded model."""

from agent.supervisor.spec import WorkerSpec, WorkerStats
from agent.supervisor.supervisor import Supervisor
from agent.supervisor.worker import Generation, Worker

__all__ = ["Generation", "Supervisor", "Worker", "WorkerSpec", "WorkerStats"]
