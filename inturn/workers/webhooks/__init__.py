"""How webhooks are sent: to whom one may connect, one attempt, what becomes of its delivery, and who goes through them."""
