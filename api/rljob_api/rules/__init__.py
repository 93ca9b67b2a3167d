"""What crosses fields: the same rules for the CRD (CEL) and for Python."""
