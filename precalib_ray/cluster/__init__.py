"""Ray: sessions, trainers and what their workers run."""

import os

# Before Ray is imported: an interrupted job must not start a cluster anew, as any call of Ray's
# would by itself, from a thread that has not noticed yet.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
