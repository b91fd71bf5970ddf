"""A run's folder, copied to MLflow where runs are compared. Only this package knows MLflow."""
