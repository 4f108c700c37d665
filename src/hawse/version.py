"""Which hawse this is."""

VERSION = "0.1.0"
#: The newest version of the OCI runtime specification whose fields are known.
SPEC_VERSION = "1.2.0"
