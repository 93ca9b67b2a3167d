"""Container images of RLJob, and the program that builds them."""
