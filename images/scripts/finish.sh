#!/bin/sh
# End of a dependencies stage: our code on the path, no installer left behind, everything compiled.
set -eu
site=$(echo /opt/rljob/lib/python3*/site-packages)
echo /opt/rljob/src > "$site/rljob.pth"
mkdir -p /opt/rljob/src
# kubernetes.aio is a second client, of 80 MB, that nothing here uses.
rm -rf "$site"/pip "$site"/pip-* "$site"/kubernetes/aio
# Some packages ship Python 2 or template files that do not compile; they are not imported either.
/opt/build/scripts/compile.sh "$site" > /tmp/compile.log 2>&1 || tail -n 5 /tmp/compile.log
