"""Finds how many inputs of a call the servers of a model accept.

A server may take fewer inputs than the settings say, or none as an array, and in a batch with many bad lines most
calls are refused. Then smaller calls cost less. So the bound is halved when several calls of its size are refused
and none is answered, and doubled again after many answers.
"""

from typing import Final

REFUSED_MAX: Final = 4
"""Calls that are refused before the bound is halved."""
ANSWERED_MIN: Final = 256
"""Calls that are answered before the bound is doubled."""


class InputBound:
    """The bound of one model."""

    def __init__(self, inputs_max: int) -> None:
        """Start with the number in the settings."""
        self._inputs_max = inputs_max
        self.inputs = inputs_max
        self._refused = 0
        self._answered = 0

    def answered(self, inputs: int) -> None:
        """Note a call that was answered; one of fewer than half as many inputs proves nothing."""
        if 2 * inputs <= self.inputs:
            return
        self._refused = 0
        self._answered += 1
        if self._answered >= ANSWERED_MIN:
            self._answered = 0
            self.inputs = min(2 * self.inputs, self._inputs_max)

    def refused(self, inputs: int) -> bool:
        """Note a call that was refused; returns whether this lowered the bound."""
        if 2 * inputs <= self.inputs or inputs > self.inputs:
            return False
        self._answered = 0
        self._refused += 1
        if self._refused < REFUSED_MAX:
            return False
        self._refused = 0
        self.inputs = max(1, self.inputs // 2)
        return True
