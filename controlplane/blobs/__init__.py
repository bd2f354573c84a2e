"""Chunks, kept once each under their digest, and the deltas made of them."""

from controlplane.blobs.deltas import Delta, DeltaCache, Pair
from controlplane.blobs.filesystem import MESSAGE_BYTES, ChunkStore

__all__ = ["MESSAGE_BYTES", "ChunkStore", "Delta", "DeltaCache", "Pair"]
