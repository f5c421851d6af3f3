"""The material of `headwater demo`: invented facts and a corpus whose true sources are known."""
