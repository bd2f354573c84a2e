"""The notary without its process."""

from agent.config import DataDir
from agent.notary import Ask, expect
from agent.notary.answering import answer
from agent.notary.questions import Answer, Question, Sign, Signed


def asking(data_dir: DataDir) -> Ask:
    """What agent.notary.Notary.ask does, in this process."""

    async def ask(question: Question) -> Answer:
        return answer(data_dir, question)

    return ask


async def signed(data_dir: DataDir, data: bytes) -> bytes:
    """The device key's signature."""
    return expect(Signed, await asking(data_dir)(Sign(data=data))).data
