"""What crosses fields: each rule once, for the CRD (CEL) and for Python; and the arithmetic of a job."""
