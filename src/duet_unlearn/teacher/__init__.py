"""The teacher: the base model with a prefix in front; how it is asked, what it says, and the cache of its targets."""
