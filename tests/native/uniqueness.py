"""Whether every sequence number was used once."""

from __future__ import annotations

import numpy as np

from tests.native.faults import Faults


def check_unique(faults: Faults) -> int:
    """Each (SPI, sequence number) that was handed to the kernel had one ciphertext, however often it was handed over.

    Gives how many different ones there were.
    """
    recorded = faults.recorded()
    pairs = np.unique(recorded[["spi", "sequence"]])
    different = np.unique(recorded)
    assert len(different) == len(pairs), f"{len(different) - len(pairs)} sequence numbers sealed two packets"
    return len(pairs)
