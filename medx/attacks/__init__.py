"""What an adversary really gets: what a bound means, and attacks on what each observer has."""
