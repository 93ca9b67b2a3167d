"""The models of `rljob.io/v1alpha1`: one file per section of the spec."""
