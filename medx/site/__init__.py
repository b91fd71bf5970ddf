"""What a hospital itself decides about federated studies: which it admits, and a log of what it admitted."""
