"""The federation: one ServerApp, one ClientApp, rounds and strategies on Flower's Message API."""
