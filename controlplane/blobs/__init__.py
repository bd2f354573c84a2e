"""Chunks, stored once under their digest, and the deltas between files."""

from controlplane.blobs.deltas import Delta, DeltaCache, Pair
from controlplane.blobs.filesystem import MESSAGE_BYTES, ChunkStore

__all__ = ["MESSAGE_BYTES", "ChunkStore", "Delta", "DeltaCache", "Pair"]
