"""``python -m ops.chaos batch``: a batch whose submitter, workers and Redis are killed until it is done."""
