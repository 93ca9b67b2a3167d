"""The dense retrieval service: encoders, the faiss index and the HTTP service. Imports nothing heavy by itself."""
