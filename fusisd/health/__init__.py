"""Whether real servers answer."""
