"""Reading a manifest, and explaining what is wrong with it."""
