"""What a conversation is: its states, its tables, and the store verbs that move it. Knows SQL and nothing else."""
