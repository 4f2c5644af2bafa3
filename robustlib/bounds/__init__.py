"""Bounds of what a network answers within a radius: intervals, CROWN, and images that are proved to stand."""

from robustlib.bounds.known_layers import UnknownLayer
from robustlib.bounds.network import Network
from robustlib.bounds.proofs import Proof, Prover
from robustlib.bounds.traced_network import network_of

__all__ = ["Network", "Proof", "Prover", "UnknownLayer", "network_of"]
