"""Pages for people: the operator's, and that of a team."""
