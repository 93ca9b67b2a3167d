"""Engines behind one interface; a folder each, imported only when used."""
