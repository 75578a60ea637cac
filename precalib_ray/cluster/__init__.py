"""Ray: sessions, trainers and what their workers run."""

import os

# Set before Ray is imported: otherwise, after an interrupt, a call of Ray's from a remaining thread
# would start a new cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
