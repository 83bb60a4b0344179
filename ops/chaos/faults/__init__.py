"""What can go wrong, in files named after what it hits. Each fault undoes itself, also when something fails meanwhile."""
