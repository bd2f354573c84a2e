"""Outcomes of steps of probation: errors of the worker and the time limit become outcomes."""

import asyncio
from collections.abc import Awaitable

from agent.errors import AgentError, ModelRefusedError, WorkerCrashedError, WorkerFailedError
from agent.probation.entries import GuessRefusedError
from agent.probation.proof import Outcome


async def judge(seconds: float, step: Awaitable[tuple[Outcome, str]]) -> tuple[Outcome, str]:
    """Run a step for at most ``seconds`` and return its outcome and detail."""
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        return "inconclusive", "not finished within probation's timeout_seconds"
    except GuessRefusedError as error:
        return "unmeasured", str(error)
    except ModelRefusedError as error:
        return ("inconclusive" if error.unsupported else "failed"), str(error)
    except (WorkerCrashedError, WorkerFailedError) as error:
        return "failed", str(error)
    except AgentError as error:
        return "inconclusive", str(error)
