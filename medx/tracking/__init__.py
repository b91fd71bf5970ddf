"""Where runs are written down to be compared. Only this package knows MLflow.

This file imports nothing, because ``courier.warm_up`` has to begin before anything heavy is imported.
"""
