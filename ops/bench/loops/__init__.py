"""Bodies of the bare loop: the same two statements a turn, as different libraries make them."""
