"""Reading a manifest, explaining what is wrong with it, and the arithmetic of a job."""
