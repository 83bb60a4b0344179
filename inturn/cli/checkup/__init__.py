"""What ``inturn doctor`` finds out about providers, without loading what works."""
