"""The local HTTP endpoint: OpenAI's API for text, the Open Inference Protocol for tensors."""

from agent.gateway.server import Gateway

__all__ = ["Gateway"]
