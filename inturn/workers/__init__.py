"""What happens to conversations: the Celery app, the pool, the ledger, and the crew that keeps them going."""
