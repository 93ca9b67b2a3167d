"""Engines behind one interface; a folder each, imported only when used.

A new engine is a folder here with an InferenceEngine and what builds it, and its line in `rljob_api.catalogue.engines`.
"""
