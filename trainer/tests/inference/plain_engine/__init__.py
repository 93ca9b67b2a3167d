"""An engine in its plainest form: transformers computes the whole sequence anew for every token."""
