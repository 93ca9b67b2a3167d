"""`rljob run`: the whole job on this machine."""
