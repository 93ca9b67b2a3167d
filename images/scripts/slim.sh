#!/bin/sh
# Leave out of the trainer image what a running program cannot use: headers and build tools (there is no compiler),
# Ray's Java part, and Arrow's network services. A package without one of these is no error.
set -eu
cd /opt/rljob/lib/python3*/site-packages
rm -rf torch/include torch/share torch/lib/*.a torch/bin/protoc* torch/bin/test_* \
       ray/jars ray/cpp \
       pyarrow/include pyarrow/tests pyarrow/src pyarrow/*.pyx pyarrow/*.pxi \
       pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.* \
       numpy/*/include
