"""Boosts: what the attributes of a product add to its score."""

import msgspec

from core.attributes.filters import Row


class Boost(msgspec.Struct, frozen=True):
    """A numeric attribute that adds to the score."""

    attribute: str
    weight: float
    least: float
    """A value of so much, or less, adds nothing."""
    most: float
    """A value of so much, or more, adds the weight."""

    def of(self, attributes: Row) -> float:
        """What a product with these attributes gains: nothing where it has no such number."""
        value = attributes.get(self.attribute)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return 0.0
        share = (float(value) - self.least) / (self.most - self.least)
        return self.weight * min(1.0, max(0.0, share))
