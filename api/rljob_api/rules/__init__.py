"""What crosses fields: each rule once, for the CRD (CEL) and for Python."""
