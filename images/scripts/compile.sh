#!/bin/sh
# Compile folders to bytecode that is never checked against its source: the root file system is read-only in a pod, and
# image builders set the times of files, which would make ordinary bytecode stale and every start a compilation.
set -eu
exec /opt/rljob/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$@"
