"""What happens to inturn when everything around it fails, and the proof that nothing is lost: ``make chaos``."""
