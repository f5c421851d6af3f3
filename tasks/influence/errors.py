"""InfluenceError: what the numerics refuse, naming the object, the expectation, what came and the next step."""


class InfluenceError(ValueError):
    """A model, module or tensor that the numerics cannot attribute with."""
