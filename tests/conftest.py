"""For every test: JAX on eight CPU devices, one token for all Rays of this process; before anything imports them."""

import os
import secrets

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Ray reads its token once in the life of a process.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
