"""What a hospital would contribute, looked at before anybody trains: ``python -m medx.data check DIR``."""
